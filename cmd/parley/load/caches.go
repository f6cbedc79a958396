package load

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
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

// caches reads cache_requests_total of every admin port, added up by cache.
func (w *watched) caches(ctx context.Context) (map[string]CacheUse, error) {
	all := map[string]CacheUse{}
	for _, url := range w.metrics {
		body, err := w.get(ctx, url+"/metrics")
		if err != nil {
			return nil, fmt.Errorf("--metrics: %w", err)
		}
		addCaches(all, body)
	}
	return all, nil
}

// addCaches adds the counters of one process, in the format of Prometheus.
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
