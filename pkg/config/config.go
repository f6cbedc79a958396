// Package config reads configuration from the environment, once and strictly.
//
// A program owns every variable that begins with its prefix: a variable that no
// field takes, one that is missing and one that does not parse all stop the
// start, each named. All faults are told at once. The value of a field marked
// secret never appears in an error.
//
// Fields are described by tags:
//
//	env:"DATABASE_URL"   the variable, after the prefix; a field without it is left alone
//	default:"30s"        used when the variable is absent or empty
//	required:"true"      absent or empty is an error
//	secret:"true"        the value is never shown
//	min:"1" max:"100"    bounds of numbers and durations, and of the length of strings, lists and bytes
//	doc:"..."            one line for the reference page
//
// Types: string, bool, the integers, float64, time.Duration, url.URL and
// *url.URL, []string (comma separated), []byte (base64, standard or URL
// alphabet), map[string]string ("a=1,b=2") and whatever implements
// encoding.TextUnmarshaler. Structs nest: the env tag of a struct is put before
// the names of its fields, an embedded struct without one shares the prefix.
package config

import (
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"text/tabwriter"
)

// Load fills into, a pointer to a struct, from the variables in environ (as of
// os.Environ) that begin with prefix ("PARLEY_AUTH_"), and refuses those that it
// does not know. The error names every variable at fault.
func Load(prefix string, into any, environ []string) error {
	src := NewSource(prefix, environ)
	return errors.Join(src.Load(into), src.Unknown())
}

// Source is an environment from which several structs are filled that share one
// prefix. It is not safe for concurrent use.
type Source struct {
	prefix string
	values map[string]string
	known  map[string]bool
}

// NewSource keeps the variables of environ that begin with prefix. Of a name
// that occurs twice the last one counts, as in os/exec.
func NewSource(prefix string, environ []string) *Source {
	s := &Source{prefix: prefix, values: map[string]string{}, known: map[string]bool{}}
	for _, pair := range environ {
		name, value, ok := strings.Cut(pair, "=")
		if ok && strings.HasPrefix(name, prefix) {
			s.values[name] = value
		}
	}
	return s
}

// Load fills into, a pointer to a struct. The error names every variable that is
// missing or invalid.
func (s *Source) Load(into any) error {
	fields, err := walk(s.prefix, into)
	if err != nil {
		return err
	}
	var faults []error
	for _, f := range fields {
		s.known[f.Name] = true
		if err := f.fill(s.values[f.Name]); err != nil {
			faults = append(faults, err)
		}
	}
	return errors.Join(faults...)
}

// Unknown tells, as an error, the variables with the prefix that no struct
// loaded so far has taken, or nil.
func (s *Source) Unknown() error {
	var faults []error
	for name := range s.values {
		if !s.known[name] {
			faults = append(faults, fmt.Errorf("%s: no such setting", name))
		}
	}
	slices.SortFunc(faults, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(faults...)
}

// Field is what the reference page says of one variable.
type Field struct {
	// Name is the whole name of the variable, prefix included.
	Name string
	// Type is the Go type in short: "string", "duration", "url", "base64", ….
	Type     string
	Default  string
	Required bool
	Secret   bool
	Min, Max string
	Doc      string

	value reflect.Value
}

// Describe lists the variables that fill into, in the order of its fields.
func Describe(prefix string, into any) ([]Field, error) { return walk(prefix, into) }

// walk lists the tagged fields of the struct that into points to.
func walk(prefix string, into any) ([]Field, error) {
	v := reflect.ValueOf(into)
	if v.Kind() != reflect.Pointer || v.IsNil() || v.Elem().Kind() != reflect.Struct {
		return nil, fmt.Errorf("configuration is read into a pointer to a struct, not into %T", into)
	}
	return walkStruct(prefix, v.Elem())
}

func walkStruct(prefix string, v reflect.Value) ([]Field, error) {
	var fields []Field
	for i := range v.NumField() {
		sf := v.Type().Field(i)
		name, tagged := sf.Tag.Lookup("env")
		switch {
		case !sf.IsExported() && !sf.Anonymous, !tagged && !sf.Anonymous:
			continue
		case isSection(sf.Type):
			if name != "" {
				name += "_"
			}
			inner, err := walkStruct(prefix+name, v.Field(i))
			if err != nil {
				return nil, err
			}
			fields = append(fields, inner...)
		case tagged:
			kind, err := kindOf(sf.Type)
			if err != nil {
				return nil, fmt.Errorf("field %s: %w", sf.Name, err)
			}
			fields = append(fields, Field{
				Name: prefix + name, Type: kind, Default: sf.Tag.Get("default"),
				Required: sf.Tag.Get("required") == "true", Secret: sf.Tag.Get("secret") == "true",
				Min: sf.Tag.Get("min"), Max: sf.Tag.Get("max"), Doc: sf.Tag.Get("doc"), value: v.Field(i),
			})
		}
	}
	return fields, nil
}

// isSection tells a struct whose fields are variables from one that is a value.
func isSection(t reflect.Type) bool {
	return t.Kind() == reflect.Struct && t != urlType && !reflect.PointerTo(t).Implements(textType)
}

// Print writes a table of fields, for people: name, type, default or whether it
// has to be set, and what it is.
func Print(out io.Writer, fields []Field) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, f := range fields {
		state := "default " + f.Default
		switch {
		case f.Required:
			state = "required"
		case f.Default == "":
			state = "may be empty"
		}
		if _, err := fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", f.Name, f.Type, state, f.Doc); err != nil {
			return fmt.Errorf("print the configuration: %w", err)
		}
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("print the configuration: %w", err)
	}
	return nil
}
