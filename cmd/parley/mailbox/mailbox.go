// Package mailbox is the page of `parley dev` that shows the mails which were sent.
//
// It owns no mails, the sink does. It is for the developer at this machine: it
// answers to nobody elsewhere and only to names of this machine, and what a mail
// says runs no script, loads nothing and cannot reach the page around it.
package mailbox

import (
	"bytes"
	"embed"
	"encoding/json"
	"fmt"
	"html/template"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"

	"github.com/parleychat/parley/pkg/mailsink"
)

// Path is where the page is to be served; everything below it belongs to it.
const Path = "/mails/"

//go:embed page.html
var pageFile embed.FS

// The page itself has styles only, and shows mails in frames; a mail gets an
// origin of its own, without scripts, forms and anything from the network.
const (
	pagePolicy = "default-src 'none'; style-src 'unsafe-inline'; frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
	mailPolicy = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; frame-ancestors 'self'"
)

type page struct {
	sink *mailsink.Sink
	view *template.Template
	log  *slog.Logger
}

// New returns the handler of Path:
//
//	GET  /mails/            the list
//	GET  /mails/json        the list for programs; ?to=ADDRESS chooses
//	GET  /mails/{n}         one mail; /html its HTML alone, /raw as it came
//	POST /mails/clear       forgets all
func New(sink *mailsink.Sink, log *slog.Logger) (http.Handler, error) {
	view, err := template.ParseFS(pageFile, "page.html")
	if err != nil {
		return nil, fmt.Errorf("parse the page of mails: %w", err)
	}
	p := &page{sink: sink, view: view, log: log}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+Path+"{$}", p.list)
	mux.HandleFunc("GET "+Path+"json", p.json)
	mux.HandleFunc("GET "+Path+"{number}", p.mail)
	mux.HandleFunc("GET "+Path+"{number}/html", p.html)
	mux.HandleFunc("GET "+Path+"{number}/raw", p.raw)
	mux.HandleFunc("POST "+Path+"clear", p.clear)
	return http.NewCrossOriginProtection().Handler(local(mux)), nil
}

// local answers to this machine, and to names of it, only: the page has no log-in, and
// the admin port may be open to a network; and a page elsewhere whose name leads here
// (DNS rebinding) must not read codes.
func local(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if from, err := netip.ParseAddrPort(r.RemoteAddr); err != nil || !from.Addr().Unmap().IsLoopback() {
			http.Error(w, "ask from this machine", http.StatusForbidden)
			return
		}
		host := r.Host
		if name, _, err := net.SplitHostPort(host); err == nil {
			host = name
		}
		_, err := netip.ParseAddr(strings.Trim(host, "[]"))
		if err != nil && !strings.EqualFold(host, "localhost") {
			http.Error(w, "ask by address, or as localhost", http.StatusMisdirectedRequest)
			return
		}
		h := w.Header()
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		next.ServeHTTP(w, r)
	})
}

// content is what the template shows.
type content struct {
	Mails []mailsink.Mail
	// One is the mail that is open, or nil.
	One *mailsink.Mail
}

func (p *page) list(w http.ResponseWriter, r *http.Request) {
	p.show(w, r, content{Mails: p.sink.Mails()})
}

func (p *page) mail(w http.ResponseWriter, r *http.Request) {
	if m, ok := p.find(w, r); ok {
		p.show(w, r, content{Mails: p.sink.Mails(), One: &m})
	}
}

func (p *page) show(w http.ResponseWriter, r *http.Request, c content) {
	var out bytes.Buffer
	if err := p.view.Execute(&out, c); err != nil {
		p.log.ErrorContext(r.Context(), "the page of mails cannot be made", "error", err)
		http.Error(w, "the page cannot be made", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Security-Policy", pagePolicy)
	p.write(w, r, "text/html; charset=utf-8", out.Bytes())
}

func (p *page) json(w http.ResponseWriter, r *http.Request) {
	mails := []mailsink.Mail{}
	to := r.URL.Query().Get("to")
	for _, m := range p.sink.Mails() {
		if to == "" || addressed(m, to) {
			mails = append(mails, m)
		}
	}
	body, err := json.Marshal(map[string]any{"mails": mails})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	p.write(w, r, "application/json", append(body, '\n'))
}

func addressed(m mailsink.Mail, to string) bool {
	for _, address := range m.To {
		if strings.EqualFold(address, to) {
			return true
		}
	}
	return false
}

func (p *page) html(w http.ResponseWriter, r *http.Request) {
	if m, ok := p.find(w, r); ok {
		w.Header().Set("Content-Security-Policy", mailPolicy)
		p.write(w, r, "text/html; charset=utf-8", []byte(m.HTML))
	}
}

func (p *page) raw(w http.ResponseWriter, r *http.Request) {
	if m, ok := p.find(w, r); ok {
		p.write(w, r, "text/plain; charset=utf-8", m.Raw)
	}
}

func (p *page) clear(w http.ResponseWriter, r *http.Request) {
	p.sink.Clear()
	http.Redirect(w, r, Path, http.StatusSeeOther)
}

func (p *page) find(w http.ResponseWriter, r *http.Request) (mailsink.Mail, bool) {
	number, err := strconv.Atoi(r.PathValue("number"))
	m, ok := p.sink.Mail(number)
	if err != nil || !ok {
		http.Error(w, "there is no such mail (any more)", http.StatusNotFound)
		return mailsink.Mail{}, false
	}
	return m, true
}

func (p *page) write(w http.ResponseWriter, r *http.Request, kind string, body []byte) {
	w.Header().Set("Content-Type", kind)
	if _, err := w.Write(body); err != nil {
		p.log.DebugContext(r.Context(), "the reader of mails went away", "error", err)
	}
}
