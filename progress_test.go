package flow

import (
	"bytes"
	"encoding/binary"
	"math"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/metadata"
	"pgregory.net/rapid"
)

// drawSummary draws runs of unsettled messages, with gaps at the borders of uvarint lengths, often more than fit.
func drawSummary(t *rapid.T) Summary {
	var s Summary
	for range rapid.IntRange(0, 6).Draw(t, "runs") {
		gap := rapid.SampledFrom([]uint64{1, 2, 127, 128, 16383, 16384, 1 << 40}).Draw(t, "gap")
		for range rapid.IntRange(1, 1500).Draw(t, "length") {
			s.Received += gap
			s.Unsettled = append(s.Unsettled, s.Received)
		}
	}
	s.Received += rapid.SampledFrom([]uint64{0, 1, 127, 128, 16384, 1 << 21}).Draw(t, "tail")
	s.Committed = s.Received
	if len(s.Unsettled) > 0 {
		s.Committed = s.Unsettled[0] - 1
	}
	return s
}

// encode is the contract's format with the first n unsettled messages, written down as naively as can be.
func encode(s Summary, n int) []byte {
	top := s.Received
	if n < len(s.Unsettled) {
		top = s.Unsettled[n] - 1
	}
	b := binary.AppendUvarint(nil, top)
	before := uint64(0)
	for _, seq := range s.Unsettled[:n] {
		b = binary.AppendUvarint(b, seq-before)
		before = seq
	}
	return b
}

func TestProgressSurvivesItsTripAndForgetsOnlyFromTheEnd(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawSummary(t)
		p := s.Progress()
		b, err := p.MarshalBinary()
		if err != nil || len(b) > 2048 {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
		var got Progress
		if err := got.UnmarshalBinary(b); err != nil {
			t.Fatal(err)
		}
		n := len(got.unsettled)
		if want := encode(s, n); !bytes.Equal(b, want) {
			t.Fatalf("wrote %x, the format is %x", b, want)
		}
		if n < len(s.Unsettled) && len(encode(s, n+1)) <= 2048 {
			t.Fatalf("left out message %d, which fits", s.Unsettled[n])
		}
		if got.Committed() != s.Committed || p.Committed() != s.Committed {
			t.Fatalf("committed %d and %d, want %d", p.Committed(), got.Committed(), s.Committed)
		}
		probe := func(seq uint64) {
			_, open := slices.BinarySearch(s.Unsettled, seq)
			settled := seq >= 1 && seq <= s.Received && !open
			if p.Settled(seq) != settled {
				t.Fatalf("Settled(%d) = %v", seq, p.Settled(seq))
			}
			if got.Settled(seq) != (settled && seq <= got.received) {
				t.Fatalf("after the trip: Settled(%d) = %v", seq, got.Settled(seq))
			}
		}
		for _, seq := range s.Unsettled {
			probe(seq - 1)
			probe(seq)
			probe(seq + 1)
		}
		for _, seq := range []uint64{0, 1, s.Received, s.Received + 1, got.received, got.received + 1, math.MaxUint64} {
			probe(seq)
		}
		fromTrailer, ok := ProgressFromTrailer(s.trailer())
		if !ok || fromTrailer.received != got.received || !slices.Equal(fromTrailer.unsettled, got.unsettled) {
			t.Fatalf("trailer %v: %v", s.trailer(), ok)
		}
	})
}

func TestProgressFillsItsTwoKiB(t *testing.T) {
	run := func(n int) (all []uint64) {
		for i := range n {
			all = append(all, uint64(i+1))
		}
		return all
	}
	for _, c := range []struct {
		open      int    // messages 1..open are unsettled
		received  uint64 // three bytes as a uvarint
		bytes     int
		highest   uint64
		unsettled int
	}{
		{2045, 1 << 20, 2048, 1 << 20, 2045},
		{2046, 1 << 20, 2047, 2045, 2045}, // the last one's byte is there, but not the third of received's
		{2047, 1 << 20, 2048, 2046, 2046}, // a smaller R is shorter, and makes room for one more
		{9999, 1 << 20, 2048, 2046, 2046},
	} {
		b, _ := Summary{Received: c.received, Unsettled: run(c.open)}.Progress().MarshalBinary()
		var p Progress
		if err := p.UnmarshalBinary(b); err != nil {
			t.Fatal(err)
		}
		if len(b) != c.bytes || p.received != c.highest || len(p.unsettled) != c.unsettled {
			t.Errorf("%d open: %d bytes, R %d, %d unsettled", c.open, len(b), p.received, len(p.unsettled))
		}
	}
}

func TestProgressOfACleanStreamIsOneNumber(t *testing.T) {
	md := Summary{Received: 5, Succeeded: 5, Committed: 5}.trailer()
	if len(md) != 1 || !slices.Equal(md.Get("flow-committed"), []string{"5"}) {
		t.Fatalf("trailer %v", md)
	}
	p, ok := ProgressFromTrailer(md)
	if !ok || p.Committed() != 5 || !p.Settled(5) || p.Settled(6) || p.Settled(0) {
		t.Errorf("%v %v", p, ok)
	}
}

func TestSummaryThatContradictsItselfCountsItsCommitted(t *testing.T) {
	for _, s := range []Summary{
		{Received: 9, Committed: 2}, // Stats.Total is like that
		{Received: 9, Committed: 2, Unsettled: []uint64{5}},
		{Received: 9, Committed: 2, Unsettled: []uint64{3, 3}},
		{Received: 9, Committed: 2, Unsettled: []uint64{3, 5, 4}},
		{Received: 9, Committed: 2, Unsettled: []uint64{3, 10}},
	} {
		p := s.Progress()
		if p.Committed() != 2 || p.Settled(3) || p.Settled(9) {
			t.Errorf("%+v: committed %d", s, p.Committed())
		}
	}
	s := Summary{Received: 9, Committed: math.MaxUint64, Unsettled: []uint64{0}}
	if p := s.Progress(); len(p.unsettled) != 0 {
		t.Error("there is no message 0")
	}
}

func TestProgressIsNotChangedThroughItsSummary(t *testing.T) {
	s := Summary{Received: 9, Committed: 2, Unsettled: []uint64{3}}
	p := s.Progress()
	s.Unsettled[0] = 9
	if p.Settled(3) || !p.Settled(9) {
		t.Error("Progress shares the Summary's slice")
	}
}

func TestTrailerThatIsMissingOrMalformedIsNoProgress(t *testing.T) {
	bin := func(v ...uint64) string {
		var b []byte
		for _, v := range v {
			b = binary.AppendUvarint(b, v)
		}
		return string(b)
	}
	for name, c := range map[string]struct {
		md metadata.MD
		ok bool
	}{
		"nothing":               {nil, false},
		"only the rest":         {metadata.Pairs("flow-progress-bin", bin(5, 3)), false},
		"both":                  {metadata.Pairs("flow-committed", "2", "flow-progress-bin", bin(5, 3)), true},
		"both, none unsettled":  {metadata.Pairs("flow-committed", "5", "flow-progress-bin", bin(5)), true},
		"zero":                  {metadata.Pairs("flow-committed", "0"), true},
		"largest":               {metadata.Pairs("flow-committed", "18446744073709551615"), true},
		"too large":             {metadata.Pairs("flow-committed", "18446744073709551616"), false},
		"negative":              {metadata.Pairs("flow-committed", "-1"), false},
		"sign":                  {metadata.Pairs("flow-committed", "+1"), false},
		"leading zero":          {metadata.Pairs("flow-committed", "01"), false},
		"empty":                 {metadata.Pairs("flow-committed", ""), false},
		"no number":             {metadata.Pairs("flow-committed", "many"), false},
		"twice":                 {metadata.Pairs("flow-committed", "1", "flow-committed", "1"), false},
		"the rest twice":        {metadata.Pairs("flow-committed", "2", "flow-progress-bin", bin(5, 3), "flow-progress-bin", bin(5, 3)), false},
		"they contradict":       {metadata.Pairs("flow-committed", "3", "flow-progress-bin", bin(5, 3)), false},
		"the rest malformed":    {metadata.Pairs("flow-committed", "2", "flow-progress-bin", "\xff"), false},
		"the rest empty":        {metadata.Pairs("flow-committed", "0", "flow-progress-bin", ""), false},
		"keys in capitals, too": {metadata.Pairs("Flow-Committed", "2", "Flow-Progress-Bin", bin(5, 3)), true},
	} {
		if p, ok := ProgressFromTrailer(c.md); ok != c.ok || !ok && p.Committed() != 0 {
			t.Errorf("%s: %v %v", name, p, ok)
		}
	}
}

func TestMalformedProgressIsRefusedAndChangesNothing(t *testing.T) {
	for name, data := range map[string]string{
		"empty":                  "",
		"cut":                    "\x80",
		"cut distance":           "\x05\x80",
		"R not minimal":          "\x85\x00",
		"distance not minimal":   "\x05\x81\x00",
		"R overflows":            "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02",
		"R of eleven bytes":      "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
		"distance zero":          "\x05\x00",
		"second distance zero":   "\x05\x01\x00",
		"beyond R":               "\x05\x06",
		"sum beyond R":           "\x05\x03\x03",
		"sum overflows":          "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x02\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
		"more than was ever put": "\xff\x7f" + strings.Repeat("\x01", 2047),
	} {
		p := Progress{received: 7, unsettled: []uint64{3}}
		if err := p.UnmarshalBinary([]byte(data)); err == nil {
			t.Errorf("%s: accepted as %v", name, p)
		}
		if p.received != 7 || !slices.Equal(p.unsettled, []uint64{3}) {
			t.Errorf("%s: changed to %v", name, p)
		}
	}
}

func FuzzProgressUnmarshal(f *testing.F) {
	for _, seed := range []string{"", "\x00", "\x05", "\x05\x03", "\x05\x03\x01", "\x05\x00", "\x80\x00", "\xff\x7f\x01\x80\x01"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var p Progress
		if p.UnmarshalBinary(data) != nil {
			if p.received != 0 || p.unsettled != nil {
				t.Fatal("changed by what it refused")
			}
			return
		}
		if len(p.unsettled) > 2048 {
			t.Fatalf("%d unsettled", len(p.unsettled))
		}
		b, err := p.MarshalBinary()
		if err != nil || !bytes.Equal(b, data) { // one form only for each progress
			t.Fatalf("%x came back as %x, %v", data, b, err)
		}
		if c := p.Committed(); c > p.received || c < p.received && p.Settled(c+1) || c > 0 && !p.Settled(c) {
			t.Fatalf("committed %d of %v", c, p)
		}
	})
}

func TestRestIsWhatIsNotSettled(t *testing.T) {
	sent := slices.Values([]string{"a", "b", "c", "d", "e", "f"})
	p := Summary{Received: 5, Committed: 1, Unsettled: []uint64{2, 4}}.Progress()
	rest := Rest(p, sent)
	if got := slices.Collect(rest); !slices.Equal(got, []string{"b", "d", "f"}) {
		t.Errorf("rest %v", got)
	}
	if got := slices.Collect(rest); len(got) != 3 {
		t.Errorf("ranged over again: %v", got)
	}
	again := Summary{Received: 2, Committed: 0, Unsettled: []uint64{1}}.Progress()
	if got := slices.Collect(Rest(again, rest)); !slices.Equal(got, []string{"b", "f"}) {
		t.Errorf("rest of the rest %v", got)
	}
	if got := slices.Collect(Rest(Progress{}, sent)); len(got) != 6 {
		t.Errorf("with nothing settled: %v", got)
	}
	for range rest { // leaving early must not go on with sent
		break
	}
}

func TestProgressStringSaysWhatIsSettled(t *testing.T) {
	for _, c := range []struct {
		p    Progress
		want string
	}{
		{Progress{}, "nothing settled"},
		{Progress{received: 2, unsettled: []uint64{1, 2}}, "nothing settled"},
		{Progress{received: 7}, "settled up to 7"},
		{Progress{received: 9, unsettled: []uint64{4, 6}}, "settled up to 9 except 4, 6"},
		{Progress{received: 9, unsettled: []uint64{4, 8, 9}}, "settled up to 7 except 4"},
		{Progress{received: 9, unsettled: []uint64{8, 9}}, "settled up to 7"},
		{Progress{received: 99, unsettled: []uint64{1, 3, 5, 7, 9, 11, 13, 15}}, "settled up to 99 except 1, 3, 5, 7, 9, 11, 13, 15"},
		{Progress{received: 99, unsettled: []uint64{1, 3, 5, 7, 9, 11, 13, 15, 17, 19}}, "settled up to 99 except 1, 3, 5, 7, 9, 11, 13, 15 and 2 more"},
	} {
		if got := c.p.String(); got != c.want {
			t.Errorf("%v.String() = %q, want %q", c.p.unsettled, got, c.want)
		}
	}
}

func TestSummaryStringIsOneLineOfWhatIsNotZero(t *testing.T) {
	for _, c := range []struct {
		s    Summary
		want string
	}{
		{Summary{}, "nothing received"},
		{Summary{Received: 3, Succeeded: 3, Committed: 3}, "3 received: 3 succeeded; settled up to 3"},
		{
			Summary{Received: 6, Succeeded: 2, Failed: 1, Rejected: 1, Dropped: 2, Retried: 4, Committed: 1, Unsettled: []uint64{2, 5, 6}},
			"6 received: 2 succeeded, 1 failed, 1 rejected, 2 dropped; 4 retried; settled up to 4 except 2",
		},
		{Summary{Received: 1, Dropped: 1, Unsettled: []uint64{1}}, "1 received: 1 dropped; nothing settled"},
		{Summary{Received: 9, Succeeded: 9}, "9 received: 9 succeeded"}, // as in Stats.Total
		{Summary{Received: 3, Succeeded: 2, Duplicates: 1, Committed: 9, Last: 9}, "3 received: 2 succeeded, 1 settled before; settled up to 9"},
		{Summary{Committed: 9, Last: 9}, "nothing received; settled up to 9"},
	} {
		if got := c.s.String(); got != c.want {
			t.Errorf("String() = %q, want %q", got, c.want)
		}
	}
}
