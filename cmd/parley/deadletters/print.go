package deadletters

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/parleychat/parley/pkg/event"
	// The payloads of events are linked, so that they can be shown as text.
	_ "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	_ "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	_ "github.com/parleychat/parley/proto/gen/parley/user/v1"
)

// shortest is how much of an error a line of the list shows.
const shortest = 80

// letter is a dead letter as --json prints it.
type letter struct {
	Number   uint64 `json:"number"`
	ParkedAt string `json:"parked_at,omitempty"`
	Service  string `json:"service"`
	Listener string `json:"listener"`
	Type     string `json:"type"`
	Key      string `json:"key"`
	Version  int64  `json:"key_version"`
	EventID  string `json:"event_id"`
	Attempts int32  `json:"attempts"`
	Error    string `json:"error"`
	Subject  string `json:"subject"`
	// Event is there when one letter is shown.
	Event json.RawMessage `json:"event,omitempty"`
}

func letterOf(d event.Dead) letter {
	ev := d.Letter.GetEvent()
	l := letter{
		Number: d.Seq, Service: d.Letter.GetService(), Listener: d.Letter.GetListener(), Type: ev.GetType(), Key: ev.GetKey(),
		Version: ev.GetKeyVersion(), EventID: ev.GetId(), Attempts: d.Letter.GetAttempts(), Error: d.Letter.GetError(), Subject: d.Subject,
	}
	if at := d.Letter.GetParkedAt(); at != nil {
		l.ParkedAt = at.AsTime().UTC().Format(time.RFC3339)
	}
	return l
}

// list prints a page, and where the next one begins if there is one.
func list(ctx context.Context, bus *event.Bus, o options, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	letters, err := bus.ListDead(ctx, o.filter)
	if err != nil {
		return err
	}
	if o.asJSON {
		lines := json.NewEncoder(out)
		for _, d := range letters {
			if err := lines.Encode(letterOf(d)); err != nil {
				return fmt.Errorf("print: %w", err)
			}
		}
		return nil
	}
	table := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	line := func(cells ...string) { _, _ = io.WriteString(table, strings.Join(cells, "\t")+"\n") } // Flush tells of errors
	line("NUMBER", "PARKED", "LISTENER", "TYPE", "KEY", "VERSION", "TRIES", "ERROR")
	for _, d := range letters {
		l := letterOf(d)
		line(fmt.Sprint(l.Number), l.ParkedAt, l.Service+"/"+l.Listener, l.Type, l.Key, fmt.Sprint(l.Version), fmt.Sprint(l.Attempts), inOneLine(l.Error))
	}
	if len(letters) == o.filter.Limit {
		line(fmt.Sprintf("there may be more: --after %d", letters[len(letters)-1].Seq))
	}
	if err := table.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// inOneLine shortens an error, and keeps what it quotes from writing to a terminal.
func inOneLine(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, text)
	if runes := []rune(text); len(runes) > shortest {
		return string(runes[:shortest]) + "…"
	}
	return text
}

// show prints one letter with all that is known of it.
func show(out io.Writer, d event.Dead, asJSON bool) error {
	l := letterOf(d)
	var err error
	if l.Event, err = eventText(d); err != nil {
		return err
	}
	lines := json.NewEncoder(out)
	if !asJSON {
		lines.SetIndent("", "  ")
	}
	if err := lines.Encode(l); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// eventText is the event as JSON. A payload of a type that this program does not know is shown as bytes.
func eventText(d event.Dead) (json.RawMessage, error) {
	if d.Letter.GetEvent() == nil {
		return nil, nil
	}
	raw, err := protojson.Marshal(d.Letter.GetEvent())
	if err == nil {
		return raw, nil
	}
	ev := proto.CloneOf(d.Letter.GetEvent())
	payload := ev.GetPayload()
	ev.Payload = &anypb.Any{}
	if raw, err = protojson.Marshal(ev); err != nil {
		return nil, fmt.Errorf("print the event: %w", err)
	}
	var fields map[string]any
	if err := json.Unmarshal(raw, &fields); err != nil {
		return nil, fmt.Errorf("print the event: %w", err)
	}
	fields["payload"] = map[string]any{"typeUrl": payload.GetTypeUrl(), "bytes": payload.GetValue()}
	return json.Marshal(fields)
}

// report tells what was done.
func report(out io.Writer, done string, n int, asJSON bool) error {
	text := fmt.Sprintf("%d %s\n", n, done)
	if asJSON {
		text = fmt.Sprintf("{%q:%d}\n", done, n)
	}
	if _, err := io.WriteString(out, text); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}
