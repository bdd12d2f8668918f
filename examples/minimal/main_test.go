package main

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/flow"
	pb "example.com/flow/examples/minimal/readingspb"
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

// What an outage has stopped is sent again; a dead letter is what no other try can help.
func TestOutageMakesNoDeadLetters(t *testing.T) {
	log.SetOutput(new(bytes.Buffer))
	defer log.SetOutput(os.Stderr)
	for _, c := range []struct {
		name  string
		store func() error
		dead  bool
	}{
		{"a database's deadline", func() error { return fmt.Errorf("db: %w", context.DeadlineExceeded) }, false},
		{"a quota", func() error { return status.Error(codes.ResourceExhausted, "quota") }, false},
		{"an invalid reading", func() error { return status.Error(codes.InvalidArgument, "malformed") }, true},
		{"a permanent error", func() error { return flow.Permanent(context.DeadlineExceeded) }, true},
		{"a panic", func() error { panic("poison") }, true},
	} {
		f, err := flow.New(func(context.Context, flow.Message[*pb.Reading]) error { return c.store() }, nil,
			flow.Options{OnFailure: deadLetter})
		if err != nil {
			t.Fatal(err)
		}
		readings := make(chan *pb.Reading, 1)
		readings <- &pb.Reading{Device: "oven"}
		close(readings)
		sum, err := f.Run(t.Context(), flow.FromChan(t.Context(), readings))
		if dead := sum.Committed == 1; dead != c.dead {
			t.Errorf("%s: settled as a dead letter: %v, want %v (%v)", c.name, dead, c.dead, err)
		}
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
