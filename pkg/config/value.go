package config

import (
	"encoding"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"time"
)

var (
	textType     = reflect.TypeFor[encoding.TextUnmarshaler]()
	durationType = reflect.TypeFor[time.Duration]()
	urlType      = reflect.TypeFor[url.URL]()
	urlPtrType   = reflect.TypeFor[*url.URL]()
	listType     = reflect.TypeFor[[]string]()
	bytesType    = reflect.TypeFor[[]byte]()
	mapType      = reflect.TypeFor[map[string]string]()
)

// kindOf names a supported type, or returns an error.
func kindOf(t reflect.Type) (string, error) {
	switch {
	case t == durationType:
		return "duration", nil
	case t == urlType, t == urlPtrType:
		return "url", nil
	case reflect.PointerTo(t).Implements(textType):
		return "text", nil
	case t == listType:
		return "list", nil
	case t == bytesType:
		return "base64", nil
	case t == mapType:
		return "map", nil
	}
	switch t.Kind() {
	case reflect.String:
		return "string", nil
	case reflect.Bool:
		return "bool", nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "int", nil
	case reflect.Float32, reflect.Float64:
		return "float", nil
	default:
		return "", fmt.Errorf("configuration cannot be of type %s", t)
	}
}

// fill sets the field from raw, or from its default when raw is empty. The error
// names the variable and, unless it is secret, shows the value.
func (f Field) fill(raw string) error {
	if raw == "" {
		raw = f.Default
	}
	if raw == "" {
		if f.Required {
			return fmt.Errorf("%s: missing; it has to be set", f.Name)
		}
		return nil
	}
	err := f.parse(raw)
	if err == nil {
		err = f.bounded()
	}
	switch {
	case err == nil:
		return nil
	case f.Secret:
		// The cause may quote the value, so it is not told.
		return fmt.Errorf("%s: not a valid %s (the value is not shown)", f.Name, f.Type)
	default:
		return fmt.Errorf("%s: %q is not a valid %s: %w", f.Name, raw, f.Type, err)
	}
}

func (f Field) parse(raw string) error {
	switch v := f.value.Addr().Interface().(type) {
	case *time.Duration:
		return assign(v, raw, time.ParseDuration)
	case *url.URL:
		u, err := parseURL(raw)
		if err == nil {
			*v = *u
		}
		return err
	case **url.URL:
		return assign(v, raw, parseURL)
	case encoding.TextUnmarshaler:
		return v.UnmarshalText([]byte(raw))
	case *[]string:
		return assign(v, raw, parseList)
	case *[]byte:
		return assign(v, raw, parseBytes)
	case *map[string]string:
		return assign(v, raw, parseMap)
	}
	return f.parseKind(raw)
}

func (f Field) parseKind(raw string) error {
	switch f.value.Kind() {
	case reflect.String:
		f.value.SetString(raw)
		return nil
	case reflect.Bool:
		b, err := strconv.ParseBool(raw)
		f.value.SetBool(b)
		return plain(err)
	case reflect.Float32, reflect.Float64:
		n, err := strconv.ParseFloat(raw, f.value.Type().Bits())
		if err == nil && (math.IsNaN(n) || math.IsInf(n, 0)) {
			return errors.New("it has to be a number") // NaN would pass every bound
		}
		f.value.SetFloat(n)
		return plain(err)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		n, err := strconv.ParseUint(raw, 10, f.value.Type().Bits())
		f.value.SetUint(n)
		return plain(err)
	default:
		n, err := strconv.ParseInt(raw, 10, f.value.Type().Bits())
		f.value.SetInt(n)
		return plain(err)
	}
}

// bounded checks the min and max tags against the value that parse has set.
func (f Field) bounded() error {
	for _, b := range []struct {
		limit string
		sign  float64
		word  string
	}{{f.Min, 1, "at least"}, {f.Max, -1, "at most"}} {
		if b.limit == "" {
			continue
		}
		size, limit, err := f.measure(b.limit)
		if err != nil {
			return err
		}
		if (size-limit)*b.sign < 0 {
			return fmt.Errorf("it has to be %s %s", b.word, b.limit)
		}
	}
	return nil
}

// measure returns what a bound compares: a number, nanoseconds, or a length.
func (f Field) measure(bound string) (size, limit float64, err error) {
	if f.value.Type() == durationType {
		d, err := time.ParseDuration(bound)
		return float64(f.value.Int()), float64(d), err
	}
	limit, err = strconv.ParseFloat(bound, 64)
	switch v := f.value; v.Kind() {
	case reflect.String, reflect.Slice, reflect.Map:
		return float64(v.Len()), limit, err
	case reflect.Float32, reflect.Float64:
		return v.Float(), limit, err
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return float64(v.Uint()), limit, err
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return float64(v.Int()), limit, err
	default:
		return 0, 0, fmt.Errorf("a %s has no bounds", f.Type)
	}
}

func assign[T any](to *T, raw string, parse func(string) (T, error)) error {
	v, err := parse(raw)
	if err == nil {
		*to = v
	}
	return err
}

func parseURL(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, errors.New("it does not parse")
	}
	if u.Scheme == "" || (u.Host == "" && u.Opaque == "" && u.Path == "") {
		return nil, errors.New("it needs a scheme and a host")
	}
	return u, nil
}

func parseList(raw string) ([]string, error) {
	var list []string
	for part := range strings.SplitSeq(raw, ",") {
		if part = strings.TrimSpace(part); part != "" {
			list = append(list, part)
		}
	}
	return list, nil
}

// parseBytes takes both alphabets, padded or not: keys are pasted from tools
// that differ.
func parseBytes(raw string) ([]byte, error) {
	s := strings.NewReplacer("-", "+", "_", "/").Replace(strings.TrimRight(strings.TrimSpace(raw), "="))
	b, err := base64.RawStdEncoding.DecodeString(s)
	if err != nil {
		return nil, errors.New("it is not base64")
	}
	return b, nil
}

func parseMap(raw string) (map[string]string, error) {
	m := map[string]string{}
	list, err := parseList(raw)
	if err != nil {
		return nil, err
	}
	for _, pair := range list {
		k, v, ok := strings.Cut(pair, "=")
		k, v = strings.TrimSpace(k), strings.TrimSpace(v)
		if !ok || k == "" {
			return nil, errors.New(`it has to look like "a=1,b=2"`)
		}
		if _, twice := m[k]; twice {
			return nil, fmt.Errorf("%s is there twice", k)
		}
		m[k] = v
	}
	return m, nil
}

// plain drops strconv's repetition of the value.
func plain(err error) error {
	if n, ok := errors.AsType[*strconv.NumError](err); ok {
		return n.Err
	}
	return err
}
