package mail

import (
	"bytes"
	"embed"
	"fmt"
	htmltemplate "html/template"
	"io/fs"
	"path"
	"strings"
	texttemplate "text/template"
)

// One folder per language. Every mail is two files: NAME.txt with the subject and
// the text, NAME.html with the body; layout.html is around all bodies.
//
//go:embed templates
var templateFiles embed.FS

// fallback is the language that has every template.
const fallback = "en"

// rendered is a mail in both forms.
type rendered struct {
	subject, text, html string
}

// renderer holds the parsed templates by language and name.
type renderer struct {
	text map[string]*texttemplate.Template
	html map[string]*htmltemplate.Template
}

// newRenderer parses all templates. A language may lack some, English may not.
func newRenderer(files fs.FS) (*renderer, error) {
	r := &renderer{text: map[string]*texttemplate.Template{}, html: map[string]*htmltemplate.Template{}}
	languages, err := fs.ReadDir(files, "templates")
	if err != nil {
		return nil, fmt.Errorf("list mail templates: %w", err)
	}
	for _, language := range languages {
		for name := range required {
			if err := r.parse(files, language.Name(), name); err != nil {
				return nil, err
			}
		}
	}
	for name := range required {
		if r.text[path.Join(fallback, name)] == nil {
			return nil, fmt.Errorf("mail template %s is not there in %s", name, fallback)
		}
	}
	return r, nil
}

func (r *renderer) parse(files fs.FS, language, name string) error {
	base := path.Join("templates", language)
	if _, err := fs.Stat(files, path.Join(base, name+".txt")); err != nil {
		return nil //nolint:nilerr // not translated: English stands in
	}
	// A key that is missing is an empty value, for the optional ones.
	text, err := texttemplate.New(name+".txt").Option("missingkey=zero").ParseFS(files, path.Join(base, name+".txt"))
	if err != nil {
		return fmt.Errorf("parse mail template: %w", err)
	}
	html, err := htmltemplate.New("layout.html").Option("missingkey=zero").
		ParseFS(files, path.Join(base, "layout.html"), path.Join(base, name+".html"))
	if err != nil {
		return fmt.Errorf("parse mail template: %w", err)
	}
	key := path.Join(language, name)
	r.text[key], r.html[key] = text, html
	return nil
}

// pick finds the best language that has the template: the whole tag, then its
// language, then English.
func (r *renderer) pick(locale, name string) string {
	tag := strings.ToLower(strings.ReplaceAll(locale, "_", "-"))
	for tag != "" {
		if key := path.Join(tag, name); r.text[key] != nil {
			return key
		}
		cut := strings.LastIndex(tag, "-")
		tag = tag[:max(cut, 0)]
	}
	return path.Join(fallback, name)
}

// render writes the mail in both forms. The error never holds the data.
func (r *renderer) render(m Message, product string) (rendered, error) {
	key, data := r.pick(m.Locale, m.Template), m.clean(product)
	if r.text[key] == nil {
		return rendered{}, fmt.Errorf("there is no mail template %q", m.Template)
	}
	var subject, text, html bytes.Buffer
	for _, step := range []func() error{
		func() error { return r.text[key].ExecuteTemplate(&subject, "subject", data) },
		func() error { return r.text[key].Execute(&text, data) },
		func() error {
			data["subject"] = strings.TrimSpace(subject.String())
			return r.html[key].Execute(&html, data)
		},
	} {
		if err := step(); err != nil {
			return rendered{}, fmt.Errorf("render mail %s: %w", m.Template, err)
		}
	}
	return rendered{
		subject: strings.TrimSpace(subject.String()),
		text:    strings.TrimSpace(text.String()) + "\n",
		html:    strings.TrimSpace(html.String()) + "\n",
	}, nil
}
