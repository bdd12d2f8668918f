package main

import (
	"bytes"
	"log"
	"os"
	"slices"
	"strings"
	"testing"
)

// The program does what its comment says: each device's readings in order, the dead letter, and the rest after the failure.
func TestProgramStoresInOrderKeepsADeadLetterAndResumes(t *testing.T) {
	var out bytes.Buffer
	log.SetOutput(&out)
	defer log.SetOutput(os.Stderr)
	main()
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	of := func(words string) (found []string) {
		for _, l := range lines {
			if strings.Contains(l, words) {
				found = append(found, l)
			}
		}
		return found
	}
	for _, c := range []struct {
		words string
		want  []string
	}{
		{"oven", []string{
			"stored: oven 180 at attempt 1", "dead letter: oven -400 - flow: message 2: rpc error: code = InvalidArgument desc = colder than absolute zero",
			"stored: oven 190 at attempt 1", "stored: oven 200 at attempt 1",
		}},
		{"fridge", []string{"stored: fridge 5 at attempt 2", "stored: fridge 4 at attempt 1"}},
		{"settled", []string{"settled: 6 over 2 streams"}},
	} {
		if got := of(c.words); !slices.Equal(got, c.want) {
			t.Errorf("lines with %q: %q, want %q", c.words, got, c.want)
		}
	}
	if len(lines) != 7 {
		t.Errorf("%d lines: %q", len(lines), lines)
	}
}

// What the README shows of this program is what stands in it.
func TestREADMEQuotesThisProgram(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("main.go")
	if err != nil {
		t.Fatal(err)
	}
	quotes := strings.Split(string(readme), "<!-- from examples/minimal/main.go -->\n```go\n")[1:]
	if len(quotes) < 2 {
		t.Fatalf("the README quotes %d pieces, want its first lines and the client's", len(quotes))
	}
	for _, q := range quotes {
		code, _, closed := strings.Cut(q, "```\n")
		for piece := range strings.SplitSeq(code, "\n\n") {
			if piece = unindented(piece); !closed || piece == "" || !strings.Contains(unindented(string(source)), piece) {
				t.Errorf("not in main.go:\n%s", piece)
			}
		}
	}
}

// unindented is text without the indentation of its lines.
func unindented(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	for i, l := range lines {
		lines[i] = strings.TrimLeft(l, "\t")
	}
	return strings.Join(lines, "\n")
}
