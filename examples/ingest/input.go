package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"strconv"
	"strings"
	"unicode/utf8"

	pb "example.com/flow/examples/ingest/ingestpb"
)

// input reads the records and replays them in the order in which it reads them, whatever becomes of them on the way.
type input struct {
	cfg    *config
	from   io.Reader // unless generated
	size   int64     // bytes of from; 0 when not known
	upload string
	note   func(format string, args ...any)

	half chan struct{} // closed when half is read, or with standard input 1000 lines
	goOn chan struct{} // nil, or what to wait for then

	replay  replay
	records uint64
	bad     int // bad lines so far
}

// item is one record, or what is wrong with its line.
type item struct {
	line      int
	key, text string
	wrong     string
	past      bool  // behind the middle of the input
	err       error // the input itself broke here
}

const (
	maxLine = 1 << 20 // bytes; grpc takes messages of 4 MiB
	maxBad  = 5       // bad lines that are told of one by one

	byteOrderMark = "\ufeff" // which some programs write first, and which is no part of what follows
)

var errInterrupted = errors.New("interrupted before the end of the input")

// newInput opens what the flags name, unless stop ends first. The caller closes it.
func newInput(stop context.Context, cfg *config, stdin io.Reader, upload string, note func(string, ...any)) (*input, func() error, error) {
	in := &input{cfg: cfg, upload: upload, note: note, half: make(chan struct{}), replay: replay{}}
	closeFile := func() error { return nil }
	switch cfg.in {
	case "":
	case "-":
		in.from = stdin
	default:
		f, err := open(stop, cfg.in)
		if err != nil {
			return nil, nil, err
		}
		switch info, err := f.Stat(); {
		case err == nil && info.IsDir():
			_ = f.Close()
			return nil, nil, fmt.Errorf("-in %s: must be a file, or - for standard input; it is a directory", cfg.in)
		case err == nil && info.Mode().IsRegular():
			in.size = info.Size()
		}
		in.from, closeFile = f, f.Close
	}
	return in, closeFile, nil
}

// open opens a file. Of a FIFO that takes until somebody opens its other end, so stop ends the wait.
func open(stop context.Context, name string) (*os.File, error) {
	type result struct {
		f   *os.File
		err error
	}
	opened := make(chan result) // received from, or the file is closed
	go func() {                 // not waited for once stop has ended: nothing ends an open
		f, err := os.Open(name)
		select {
		case opened <- result{f, err}:
		case <-stop.Done():
			if err == nil {
				_ = f.Close()
			}
		}
	}()
	select {
	case r := <-opened:
		return r.f, r.err
	case <-stop.Done():
		return nil, errInterrupted
	}
}

// total is how many records there will be; -1 when not known.
func (in *input) total() int {
	if in.from == nil {
		return in.cfg.records
	}
	return -1
}

// feed gives each record to the Sender of its key, until the input ends, is bad, or stop does, or a Sender has ended.
func (in *input) feed(ctx, stop context.Context, to []*sender) error {
	items, done := make(chan item), make(chan struct{})
	defer close(done)
	sendCtx, cancel := context.WithCancel(ctx) // a Send that waits for room is not to hold the end up
	defer cancel()
	defer context.AfterFunc(stop, cancel)()
	go func() { // not waited for: it may be blocked in a read that nothing ends
		defer close(items)
		in.read(func(it item) bool {
			select {
			case items <- it:
				return true
			case <-done:
				return false
			}
		})
	}()
	defer func() {
		if in.bad > maxBad {
			in.note("and %d more bad lines", in.bad-maxBad)
		}
	}()
	waited := false
	for {
		if stop.Err() != nil { // a select would toss a coin
			return errInterrupted
		}
		var it item
		var more bool
		select {
		case <-stop.Done():
			return errInterrupted
		case <-ctx.Done():
			return context.Cause(ctx)
		case it, more = <-items:
		}
		switch {
		case !more:
			return nil
		case it.err != nil:
			return fmt.Errorf("line %d: %w", it.line, it.err)
		case it.wrong != "":
			if err := in.badLine(it); err != nil {
				return err
			}
			continue
		case it.past && !waited && in.goOn != nil:
			waited = true
			close(in.half)
			select {
			case <-in.goOn:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		h := fnv.New32a()
		_, _ = io.WriteString(h, it.key)
		rec := &pb.Record{Upload: in.upload, Line: uint64(it.line), Key: it.key, Text: it.text}
		if err := to[h.Sum32()%uint32(len(to))].Send(sendCtx, rec); err != nil {
			if stop.Err() != nil {
				return errInterrupted
			}
			return err
		}
		in.replay.add(it.key, it.text)
		in.records++
	}
}

func (in *input) badLine(it item) error {
	in.bad++
	if in.cfg.bad == "stop" {
		return fmt.Errorf("line %d: %s; stopped there (-bad skip goes on)", it.line, it.wrong)
	}
	if in.bad <= maxBad {
		in.note("line %d: %s; skipped", it.line, it.wrong)
	}
	return nil
}

// read yields the records one by one.
func (in *input) read(yield func(item) bool) {
	if in.from == nil {
		line := 0
		fleet(in.cfg.devices, in.cfg.records, func(key, text string) bool {
			line++
			return yield(item{line: line, key: key, text: text, past: line > in.cfg.records/2})
		})
		return
	}
	r := bufio.NewReaderSize(in.from, 64<<10)
	offset := int64(0)
	for line := 1; ; line++ {
		text, n, err := readLine(r)
		if n == 0 && err == io.EOF {
			return
		}
		offset += int64(n)
		if line == 1 {
			text = strings.TrimPrefix(text, byteOrderMark)
		}
		if err == nil || err == io.EOF {
			if strings.TrimSpace(text) == "" { // no record, and no fault
				if err != nil {
					return
				}
				continue
			}
		}
		it := item{line: line, past: line > 1000}
		if in.size > 0 {
			it.past = offset > in.size/2
		}
		if err != nil && err != io.EOF {
			it.err = err
		} else if it.wrong = lineFault(text, n); it.wrong == "" {
			it.text = text
			it.key, it.wrong = in.cfg.keyOf(text)
		}
		if !yield(it) || err != nil {
			return
		}
	}
}

// readLine reads a line without its end, and says how many bytes it had with it. Of one that is too long it keeps
// no more than the start.
func readLine(r *bufio.Reader) (text string, n int, err error) {
	var b []byte
	for {
		part, err := r.ReadSlice('\n')
		n += len(part)
		if len(b) <= maxLine {
			b = append(b, part...)
		}
		if err == bufio.ErrBufferFull {
			continue
		}
		return strings.TrimRight(string(b), "\r\n"), n, err
	}
}

func lineFault(text string, n int) string {
	switch {
	case n > maxLine:
		return fmt.Sprintf("has %d bytes, at most %d are taken", n, maxLine)
	case !utf8.ValidString(text):
		return "is not UTF-8"
	}
	return ""
}

// keyOf finds the key in a line, or says what is wrong with it.
func (c *config) keyOf(line string) (key, wrong string) {
	if column, err := strconv.Atoi(c.key); err == nil {
		fields := strings.Fields(line)
		if len(fields) < column {
			return "", fmt.Sprintf("has %d columns, the key is in column %d", len(fields), column)
		}
		return fields[column-1], ""
	}
	var object map[string]json.RawMessage
	if json.Unmarshal([]byte(line), &object) != nil || object == nil {
		return "", "is not a JSON object"
	}
	raw, ok := object[c.key]
	if !ok {
		return "", fmt.Sprintf("has no field %q", c.key)
	}
	if json.Unmarshal(raw, &key) == nil && string(raw) != "null" {
		return key, ""
	}
	var number json.Number
	if json.Unmarshal(raw, &number) == nil && string(raw) != "null" {
		return number.String(), ""
	}
	return "", fmt.Sprintf("its field %q is neither a string nor a number", c.key)
}
