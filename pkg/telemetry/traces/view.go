package traces

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	barWidth  = 40
	nameWidth = 62
)

// Write shows a trace as a waterfall for people:
//
//	trace 4bf92f3577b34da6a3ce929d0e0e4736   12.3ms   9 steps   14:02:01.123
//	   0.0ms  12.1ms  gateway    parley.messaging.v1.MessagingService/SendMessage  ▐███████▌
func Write(w io.Writer, t Trace) error {
	total := t.Duration()
	if _, err := fmt.Fprintf(w, "trace %s   %s   %d steps   %s\n",
		t.ID, millis(total), len(t.Spans), t.Start().UTC().Format("2006-01-02T15:04:05.000Z")); err != nil {
		return fmt.Errorf("write trace: %w", err)
	}
	for _, s := range t.steps() {
		name := strings.Repeat("  ", s.depth) + s.Name
		line := fmt.Sprintf("%9s %9s  %-10s %-*s %s", "+"+millis(s.Start.Sub(t.Start())), millis(s.Duration),
			cmp.Or(s.Service, "?"), nameWidth, cut(name, nameWidth), bar(s.Start.Sub(t.Start()), s.Duration, total))
		if s.Error != "" {
			line += "  ! " + s.Error
		}
		if len(s.Links) > 0 {
			line += fmt.Sprintf("  (also for %d other traces)", len(s.Links))
		}
		if _, err := fmt.Fprintln(w, strings.TrimRight(line, " ")); err != nil {
			return fmt.Errorf("write trace: %w", err)
		}
	}
	return nil
}

// WriteList shows traces one per line.
func WriteList(w io.Writer, list []Trace) error {
	for _, t := range list {
		root := t.Root()
		failed := ""
		for _, s := range t.Spans {
			if s.Error != "" {
				failed = "  ! " + s.Error
				break
			}
		}
		if _, err := fmt.Fprintf(w, "%s  %s %9s %4d steps  %-9s %s%s\n", t.ID, t.Start().UTC().Format("15:04:05.000"),
			millis(t.Duration()), len(t.Spans), cmp.Or(root.Service, "?"), root.Name, failed); err != nil {
			return fmt.Errorf("write traces: %w", err)
		}
	}
	return nil
}

func millis(d time.Duration) string {
	return fmt.Sprintf("%.2fms", float64(d)/float64(time.Millisecond))
}

func cut(s string, width int) string {
	if utf8.RuneCountInString(s) <= width {
		return s
	}
	runes := []rune(s)
	return string(runes[:width-1]) + "…"
}

// bar draws when the step ran within the whole. Whatever ran has one mark.
func bar(start, length, total time.Duration) string {
	if total <= 0 {
		return "█"
	}
	from := min(int(int64(barWidth)*int64(start)/int64(total)), barWidth-1)
	until := min(max(int(int64(barWidth)*int64(start+length)/int64(total)), from+1), barWidth)
	return strings.Repeat("·", from) + strings.Repeat("█", until-from) + strings.Repeat("·", barWidth-until)
}
