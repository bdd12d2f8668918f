package main

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// A bundle is one program with many mutants in it, of which the environment chooses one: to build the tests takes longer
// than to run those that catch a mutant, so it is done once. Each function that a mutant changes gets a twin that has the
// change, and begins with a question:
//
//	func (l *ledger) accept() (seq uint64) {
//		if flowMutant == 7 {
//			return l.accept_mutant7()
//		}
//		…
type bundle struct {
	dir   string
	files map[string]*bundled
	twins map[string]string // by their mutant's number, for messages of the compiler
}

// bundled is a source file: text with a question in front of some functions, and the twins behind all.
type bundled struct {
	text      string
	questions map[token.Pos][]string // by the offset of the function's body
	twins     []string
}

const mutantVariable = "FLOW_MUTANT"

// errNotInFunctions is of a mutant that changes something else than bodies of functions: it needs a build of its own.
var errNotInFunctions = errors.New("it changes more than bodies of functions")

func newBundle(dir string) *bundle {
	return &bundle{dir: dir, files: map[string]*bundled{}, twins: map[string]string{}}
}

func (b *bundle) file(name string) (*bundled, error) {
	if f := b.files[name]; f != nil {
		return f, nil
	}
	text, err := os.ReadFile(filepath.Join(b.dir, name))
	if err != nil {
		return nil, err
	}
	b.files[name] = &bundled{text: string(text), questions: map[token.Pos][]string{}}
	return b.files[name], nil
}

// add puts m into b as the mutant number n. It returns errNotInFunctions, and leaves b as it was, if m can't be bundled.
func (b *bundle) add(n int, m mutant) error {
	edits := map[string][]edit{}
	for _, e := range m.edits {
		edits[e.file] = append(edits[e.file], e)
	}
	type change struct {
		f    *bundled
		at   token.Pos
		call string
		twin string
	}
	var changes []change
	for name, all := range edits {
		f, err := b.file(name)
		if err != nil {
			return err
		}
		text := f.text
		for _, e := range all {
			text = strings.Replace(text, e.old, e.new, 1)
		}
		before, beforeSet, err := functions(f.text)
		if err != nil {
			return err
		}
		after, afterSet, err := functions(text)
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		rest := [2]string{f.text, text}
		for key, fn := range after {
			old, ok := before[key]
			if !ok {
				return errNotInFunctions
			}
			was, is := sourceOf(f.text, beforeSet, old), sourceOf(text, afterSet, fn)
			rest[0], rest[1] = strings.Replace(rest[0], was, "", 1), strings.Replace(rest[1], is, "", 1)
			if was == is {
				continue
			}
			call, ok := callOf(fn, n)
			if !ok {
				return errNotInFunctions
			}
			at := beforeSet.Position(old.Body.Lbrace).Offset + 1
			nameAt := afterSet.Position(fn.Name.Pos()).Offset - afterSet.Position(fn.Pos()).Offset
			twin := is[:nameAt] + fn.Name.Name + "_mutant" + strconv.Itoa(n) + is[nameAt+len(fn.Name.Name):]
			changes = append(changes, change{f, token.Pos(at), call, twin})
		}
		if rest[0] != rest[1] {
			return errNotInFunctions
		}
	}
	for _, c := range changes {
		c.f.questions[c.at] = append(c.f.questions[c.at], fmt.Sprintf("\n\tif flowMutant == %d {\n\t\t%s\n\t}\n", n, c.call))
		c.f.twins = append(c.f.twins, c.twin)
	}
	b.twins[strconv.Itoa(n)] = m.name
	return nil
}

// functions returns the functions of a source file by receiver and name.
func functions(text string) (map[string]*ast.FuncDecl, *token.FileSet, error) {
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, "", text, parser.SkipObjectResolution)
	if err != nil {
		return nil, nil, err
	}
	all := map[string]*ast.FuncDecl{}
	for _, d := range file.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Body != nil {
			key := fn.Name.Name
			if fn.Recv != nil {
				key = receiverOf(fn) + "." + key
			}
			all[key] = fn
		}
	}
	return all, set, nil
}

func receiverOf(fn *ast.FuncDecl) string {
	t := fn.Recv.List[0].Type
	for {
		switch u := t.(type) {
		case *ast.StarExpr:
			t = u.X
		case *ast.IndexExpr:
			t = u.X
		case *ast.Ident:
			return u.Name
		default:
			return ""
		}
	}
}

func sourceOf(text string, set *token.FileSet, fn *ast.FuncDecl) string {
	return text[set.Position(fn.Pos()).Offset:set.Position(fn.End()).Offset]
}

// callOf is the statement that hands a call of fn on to its twin. ok is false if some of what it takes has no name.
func callOf(fn *ast.FuncDecl, n int) (call string, ok bool) {
	call = fn.Name.Name + "_mutant" + strconv.Itoa(n)
	if fn.Recv != nil {
		names := fn.Recv.List[0].Names
		if len(names) == 0 {
			return "", false
		}
		call = names[0].Name + "." + call
	}
	var args []string
	for _, p := range fn.Type.Params.List {
		if len(p.Names) == 0 {
			return "", false
		}
		for _, name := range p.Names {
			if name.Name == "_" {
				return "", false
			}
			args = append(args, name.Name)
		}
		if _, variadic := p.Type.(*ast.Ellipsis); variadic {
			args[len(args)-1] += "..."
		}
	}
	call += "(" + strings.Join(args, ", ") + ")"
	if fn.Type.Results != nil {
		return "return " + call, true
	}
	return call + "\n\t\treturn", true
}

// write puts the bundle where the source was.
func (b *bundle) write() error {
	for name, f := range b.files {
		var out bytes.Buffer
		for i := range len(f.text) {
			for _, q := range f.questions[token.Pos(i)] {
				out.WriteString(q)
			}
			out.WriteByte(f.text[i])
		}
		for _, twin := range f.twins {
			out.WriteString("\n" + twin + "\n")
		}
		if err := os.WriteFile(filepath.Join(b.dir, name), out.Bytes(), 0o644); err != nil {
			return err
		}
	}
	chooser := `package flow

import (
	"os"
	"strconv"
)

var flowMutant, _ = strconv.Atoi(os.Getenv("` + mutantVariable + `"))
`
	return os.WriteFile(filepath.Join(b.dir, "zz_mutant.go"), []byte(chooser), 0o644)
}

var compilerError = regexp.MustCompile(`(?m)^(?:\./)?([\w.]+\.go):(\d+):\d+: .*$`)

// explain names the mutants that the compiler's errors are of.
func (b *bundle) explain(out []byte) string {
	var text strings.Builder
	for _, e := range compilerError.FindAllSubmatch(out, -1) {
		name, line := string(e[1]), 0
		line, _ = strconv.Atoi(string(e[2]))
		source, _ := os.ReadFile(filepath.Join(b.dir, name))
		lines := strings.Split(string(source), "\n")
		for i := min(line, len(lines)) - 1; i >= 0; i-- {
			if m := twinName.FindStringSubmatch(lines[i]); strings.HasPrefix(lines[i], "func ") && m != nil {
				fmt.Fprintf(&text, "%s: %s\n", b.twins[m[1]], e[0])
				break
			}
		}
	}
	return text.String()
}

var twinName = regexp.MustCompile(`_mutant(\d+)\(`)
