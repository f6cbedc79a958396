package load

import (
	"bufio"
	"bytes"
	"regexp"
	"strconv"
)

// CacheUse is what one cache of the servers was asked in the measured time.
type CacheUse struct {
	Requests int64 `json:"requests"`
	// Hits came from the cache, or from a load that was under way for somebody else.
	Hits    int64   `json:"hits"`
	HitRate float64 `json:"hit_rate"`
}

var (
	cacheLabel  = regexp.MustCompile(`[{,]cache="([^"]+)"`)
	resultLabel = regexp.MustCompile(`[{,]result="([^"]+)"`)
)

// addCaches adds cache_requests_total of one admin port, in the format of Prometheus.
func addCaches(all map[string]CacheUse, metrics []byte) {
	lines := bufio.NewScanner(bytes.NewReader(metrics))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Bytes()
		if !bytes.HasPrefix(line, []byte("cache_requests_total{")) {
			continue
		}
		cache, result := cacheLabel.FindSubmatch(line), resultLabel.FindSubmatch(line)
		value, err := strconv.ParseFloat(string(line[bytes.LastIndexByte(line, ' ')+1:]), 64)
		if cache == nil || result == nil || err != nil {
			continue
		}
		use := all[string(cache[1])]
		use.Requests += int64(value)
		if r := string(result[1]); r == "hit" || r == "shared" {
			use.Hits += int64(value)
		}
		all[string(cache[1])] = use
	}
}

// cached fills in what the caches were asked between two readings.
func (r *Report) cached(before, after map[string]CacheUse) {
	for name, end := range after {
		use := CacheUse{Requests: end.Requests - before[name].Requests, Hits: end.Hits - before[name].Hits}
		if use.Requests <= 0 {
			continue
		}
		use.HitRate = round(float64(use.Hits)/float64(use.Requests), 4)
		if r.Caches == nil {
			r.Caches = map[string]CacheUse{}
		}
		r.Caches[name] = use
	}
}
