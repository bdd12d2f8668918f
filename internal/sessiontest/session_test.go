package sessiontest_test

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"example.com/flow"
	"pgregory.net/rapid"
)

// progressOf is a Progress of 1..last in which the unsettled ones, which ascend, are not settled.
func progressOf(last uint64, unsettled ...uint64) flow.Progress {
	s := flow.Summary{Received: last, Committed: last, Unsettled: unsettled}
	if len(unsettled) > 0 {
		s.Committed = unsettled[0] - 1
	}
	return s.Progress()
}

func TestSessionIDsStringIsUniqueAndPrintable(t *testing.T) {
	ids := []flow.SessionID{
		{}, {Name: "upload-7"}, {Owner: "a", Name: "b"}, {Owner: "a/b"}, {Name: "a/b"}, {Owner: "a", Name: "/b"},
		{Owner: "a%2Fb"}, {Owner: "a b", Name: "\x00\xff\n"}, {Owner: "a%20b", Name: "\x00\xff\n"}, {Owner: "é", Name: "~!"},
	}
	seen := map[string]flow.SessionID{}
	for _, id := range ids {
		s := id.String()
		if other, ok := seen[s]; ok {
			t.Errorf("%#v and %#v are both %q", id, other, s)
		}
		seen[s] = id
		if strings.ContainsFunc(s, func(r rune) bool { return r < '!' || r > '~' }) {
			t.Errorf("%#v is %q, which is not all printable", id, s)
		}
	}
	if s := (flow.SessionID{Owner: "tenant", Name: "upload-7"}).String(); s != "tenant/upload-7" {
		t.Errorf("a plain name is shown as %q", s)
	}
}

func TestSessionStateSurvivesItsBinaryForm(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		last := rapid.Uint64().Draw(t, "last")
		var unsettled []uint64
		for _, d := range rapid.SliceOfN(rapid.Uint64Range(1, 1<<40), 0, 3000).Draw(t, "distances") {
			before := uint64(0)
			if len(unsettled) > 0 {
				before = unsettled[len(unsettled)-1]
			}
			if d > last-before {
				break
			}
			unsettled = append(unsettled, before+d)
		}
		want := flow.SessionState{
			Epoch: rapid.Uint64().Draw(t, "epoch"), Fence: rapid.Uint64().Draw(t, "fence"),
			Progress: progressOf(last, unsettled...),
		}
		if keys := rapid.SliceOf(rapid.String()).Draw(t, "keys"); len(keys) > 0 {
			want.GivenUp = keys
		}
		b, err := want.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		var got flow.SessionState
		if err := got.UnmarshalBinary(b); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("got %+v, want %+v", got, want)
		}
		// No part of it, and nothing longer, is taken for a state.
		cut := rapid.IntRange(0, len(b)-1).Draw(t, "cut")
		if err := got.UnmarshalBinary(b[:cut]); err == nil {
			t.Fatalf("the first %d of %d bytes are taken for a state", cut, len(b))
		}
		if err := got.UnmarshalBinary(append(b, 0)); err == nil {
			t.Fatal("a byte too many is not noticed")
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatal("what can't be read has changed the state")
		}
	})
}

func TestSessionStateKeepsMoreThanATrailerDoes(t *testing.T) {
	var unsettled []uint64
	for seq := uint64(1); seq < 100_000; seq += 2 {
		unsettled = append(unsettled, seq)
	}
	b, _ := flow.SessionState{Progress: progressOf(100_000, unsettled...)}.MarshalBinary()
	var s flow.SessionState
	if err := s.UnmarshalBinary(b); err != nil {
		t.Fatal(err)
	}
	if !s.Progress.Settled(100_000) || s.Progress.Settled(99_999) {
		t.Error("the last numbers are lost")
	}
}

func TestSessionStateRefusesHugeCounts(t *testing.T) {
	huge := bytes.Repeat([]byte{0xff}, 9)
	for _, b := range [][]byte{
		nil, {0}, {2, 0, 0, 0, 0, 0}, // no format, an unknown one
		append([]byte{1, 0, 0, 5}, append(huge, 1)...),          // 2^64-1 unsettled
		append([]byte{1, 0, 0, 5, 0}, append(huge, 1)...),       // as many keys
		append([]byte{1, 0, 0, 5, 0, 1}, append(huge, 1, 7)...), // a key as long
		{1, 0, 0, 5, 1, 0, 0},                                   // a distance of 0
		{1, 0, 0, 5, 1, 6, 0},                                   // above what it speaks of
		{1, 0x80, 0, 0, 5, 0, 0},                                // a uvarint that is not its shortest
	} {
		var s flow.SessionState
		if err := s.UnmarshalBinary(b); err == nil {
			t.Errorf("% x is taken for %+v", b, s)
		}
	}
}

func FuzzSessionState(f *testing.F) {
	b, _ := flow.SessionState{Epoch: 3, Fence: 7, Progress: progressOf(9, 2, 5), GivenUp: []string{"a", ""}}.MarshalBinary()
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		var s flow.SessionState
		if s.UnmarshalBinary(b) != nil {
			return
		}
		if again, _ := s.MarshalBinary(); !bytes.Equal(again, b) {
			t.Fatalf("% x is read as %+v, which is written as % x", b, s, again)
		}
	})
}
