package flow

import (
	"encoding/binary"
	"errors"
	"iter"
	"slices"
	"strconv"

	"google.golang.org/grpc/metadata"
)

// Progress says which messages of a stream are settled: succeeded, or skipped by Options.OnFailure. It is what a client
// needs to resume. It comes from [Summary.Progress], [ProgressFromTrailer] or UnmarshalBinary; the zero value says that
// nothing is settled. It is not changed but by UnmarshalBinary, and safe for concurrent use without that.
type Progress struct {
	// What is unsettled is kept, and not what is settled: hardly more than a stream may have pending, however long it is.
	received  uint64   // above it nothing counts as settled
	unsettled []uint64 // of 1..received, strictly ascending; the others are settled
}

// maxProgress bounds the binary form: it travels in a trailer, and C-core refuses a response of more than about 7 KiB. The
// details of a status travel in the same response: see maxDetails.
const maxProgress = 2048

const (
	// The first is for clients in any language that resume from one number; the second, whose name ends in -bin so that
	// gRPC carries bytes, is for those that also skip what was settled beyond it. It is left out when it says nothing
	// more.
	trailerCommitted = "flow-committed"
	trailerProgress  = "flow-progress-bin"
)

var errMalformedProgress = errors.New("flow: malformed progress")

// Progress says which messages are settled. A Summary that no Run made, and whose fields disagree, counts up to its
// Committed. Summary's fields are exported, so they are checked: to take too little for settled costs a
// repetition, to take too much loses a message.
func (s Summary) Progress() Progress {
	// Whatever else a Summary says, Committed and the first of Unsettled must be neighbours.
	if len(s.Unsettled) == 0 || s.Unsettled[0]-1 != s.Committed {
		return Progress{received: s.Committed}
	}
	highest := max(s.Received, s.Last) // Last, but in a Summary that knows of no sessions
	last := uint64(0)
	for _, seq := range s.Unsettled {
		if seq <= last || seq > highest {
			return Progress{received: s.Committed}
		}
		last = seq
	}
	return Progress{received: highest, unsettled: slices.Clone(s.Unsettled)}
}

// Committed is the highest Seq up to which every message is settled. A client that keeps nothing but this number sends
// again from the next: some settled messages too, but none is lost.
func (p Progress) Committed() uint64 {
	if len(p.unsettled) > 0 {
		return p.unsettled[0] - 1
	}
	return p.received
}

// Settled says whether the message with this Seq is settled: it needs not be sent again. There is no message 0.
func (p Progress) Settled(seq uint64) bool {
	if seq == 0 || seq > p.received {
		return false
	}
	_, open := slices.BinarySearch(p.unsettled, seq)
	return !open
}

// upTo returns what p says of the messages up to seq.
func (p Progress) upTo(seq uint64) Progress {
	if seq < p.received {
		above, _ := slices.BinarySearch(p.unsettled, seq+1)
		p.received, p.unsettled = seq, p.unsettled[:above]
	}
	return p
}

// shownUnsettled is how many unsettled messages String names.
const shownUnsettled = 8

// String says what is settled, on one line: "settled up to 9 except 4, 6". Of many exceptions it names the first and
// counts the others. It is for logs, where thousands of exceptions would bury the line.
func (p Progress) String() string {
	if p.received == uint64(len(p.unsettled)) { // all that it speaks of is unsettled
		return "nothing settled"
	}
	last := p.received // the highest settled one: what is unsettled at the end is no exception
	open := p.unsettled
	for len(open) > 0 && open[len(open)-1] == last {
		open, last = open[:len(open)-1], last-1
	}
	b := strconv.AppendUint([]byte("settled up to "), last, 10)
	separator := " except "
	for _, seq := range open[:min(len(open), shownUnsettled)] {
		b = strconv.AppendUint(append(b, separator...), seq, 10)
		separator = ", "
	}
	if more := len(open) - shownUnsettled; more > 0 {
		b = append(strconv.AppendInt(append(b, " and "...), int64(more), 10), " more"...)
	}
	return string(b)
}

// MarshalBinary writes the form of the flow-progress-bin trailer, at most 2 KiB: the uvarint of the highest Seq that it
// speaks of, then for each unsettled one, ascending, its distance to the one before (the first: to 0) as a uvarint.
// What does not fit is left out from the end, so that a reader takes some settled messages for unsettled, and never the
// other way round. The error is always nil.
func (p Progress) MarshalBinary() ([]byte, error) { return p.marshal(maxProgress), nil }

// marshal is MarshalBinary for so many bytes: a session's header has less room than a trailer. A result that is cut is a
// Progress like any other, of a stream that had received less.
func (p Progress) marshal(limit int) []byte {
	n, top := p.fit(limit)
	b := binary.AppendUvarint(nil, top)
	last := uint64(0)
	for _, seq := range p.unsettled[:n] {
		b = binary.AppendUvarint(b, seq-last)
		last = seq
	}
	return b
}

// fit is how many unsettled ones fit into so many bytes and the highest Seq to speak of then. Both grow together, and with
// them the size, so the first that doesn't fit ends the search. After a cut the highest Seq is the one before the first
// unsettled one that is left out: above it nothing counts as settled, so leaving it out can't make it look settled.
func (p Progress) fit(limit int) (n int, top uint64) {
	size, last := 0, uint64(0)
	topAt := func(n int) uint64 {
		if n < len(p.unsettled) {
			return p.unsettled[n] - 1
		}
		return p.received
	}
	for i, seq := range p.unsettled {
		size += uvarintLen(seq - last)
		if uvarintLen(topAt(i+1))+size > limit {
			return i, topAt(i)
		}
		last = seq
	}
	return len(p.unsettled), p.received
}

// uvarintLen returns how many bytes v takes in its shortest form.
func uvarintLen(v uint64) int {
	var b [binary.MaxVarintLen64]byte
	return binary.PutUvarint(b[:], v)
}

// UnmarshalBinary reads what MarshalBinary wrote. Anything that MarshalBinary can't have written is an error, and p is not
// changed then. The data come from a network: they are bounded before anything is read, and every distance is at least 1
// and ends within what the first number covers.
func (p *Progress) UnmarshalBinary(data []byte) error {
	if len(data) > maxProgress {
		return errMalformedProgress
	}
	top, data, ok := cutUvarint(data)
	if !ok {
		return errMalformedProgress
	}
	var unsettled []uint64
	last := uint64(0)
	for len(data) > 0 {
		var d uint64
		d, data, ok = cutUvarint(data)
		if !ok || d == 0 || d > top-last { // last never exceeds top
			return errMalformedProgress
		}
		last += d
		unsettled = append(unsettled, last)
	}
	*p = Progress{received: top, unsettled: unsettled}
	return nil
}

// cutUvarint reads a uvarint in its one shortest form from the start of b. A longer form of the same number is refused, so
// that equal states have equal bytes, and none that is malformed passes for another.
func cutUvarint(b []byte) (v uint64, rest []byte, ok bool) {
	v, n := binary.Uvarint(b)
	if n <= 0 || n != uvarintLen(v) {
		return 0, nil, false
	}
	return v, b[n:], true
}

// trailer is how far the stream got, for the client. It is set however the stream ends, since a client that has failed
// needs it most.
func (s Summary) trailer() metadata.MD { return s.Progress().metadata(maxProgress) }

// metadata is p as a client reads it, with so many bytes of the binary form at most. Without unsettled ones the committed
// number says it all.
func (p Progress) metadata(limit int) metadata.MD {
	md := metadata.Pairs(trailerCommitted, strconv.FormatUint(p.Committed(), 10))
	if len(p.unsettled) > 0 {
		md.Set(trailerProgress, string(p.marshal(limit)))
	}
	return md
}

// ProgressFromTrailer reads how far a stream got from the trailer that its client received. false means that the trailer
// doesn't say, or contradicts itself: then it is not known that anything is settled. Both entries must agree: a proxy or
// an interceptor may have dropped or repeated one.
func ProgressFromTrailer(md metadata.MD) (Progress, bool) {
	committed, packed := md.Get(trailerCommitted), md.Get(trailerProgress)
	if len(committed) != 1 || len(packed) > 1 {
		return Progress{}, false
	}
	upTo, err := strconv.ParseUint(committed[0], 10, 64)
	// Only the form that FormatUint writes is accepted: flow writes no other.
	if err != nil || committed[0] != strconv.FormatUint(upTo, 10) {
		return Progress{}, false
	}
	if len(packed) == 0 {
		return Progress{received: upTo}, true // no unsettled ones: what was received is what was committed
	}
	var p Progress
	if p.UnmarshalBinary([]byte(packed[0])) != nil || p.Committed() != upTo {
		return Progress{}, false
	}
	return p, true
}

// Rest yields of what was sent, in order, that which is not settled. The first that sent yields has Seq 1, so it must be
// the first that the server's Run received: where the service method receives one by itself before, skip that. A stream of
// the rest counts from 1 again: should that break too, Rest of the rest says what is left then. It keeps nothing, and
// reads sent only as its own results are taken.
func Rest[T any](p Progress, sent iter.Seq[T]) iter.Seq[T] {
	return func(yield func(T) bool) {
		seq := uint64(0)
		for v := range sent {
			seq++
			if !p.Settled(seq) && !yield(v) {
				return
			}
		}
	}
}
