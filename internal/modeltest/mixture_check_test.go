package modeltest_test

import (
	"fmt"
	"iter"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/internal/testkit"
)

func (w *mixedSimulation) broken(format string, args ...any) {
	w.rules = append(w.rules, fmt.Sprintf(format, args...))
}

func (p *mixedMessage) String() string {
	return fmt.Sprintf("%d of stream %d (key %q)", p.seq, p.st.id, p.Key)
}

// checkRead is called as recv is.
func (w *mixedSimulation) checkRead(st *mixedStream) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.halted || st.eof {
		w.broken("stream %d is read further after its EOF, or after Shutdown", st.id)
	}
}

// pending are the messages of st that are received and not finished.
func (w *mixedSimulation) pending(st *mixedStream) iter.Seq[*mixedMessage] {
	return func(yield func(*mixedMessage) bool) {
		for _, p := range st.received[st.finished:] {
			if !p.finished && (p.runs || !w.aborted) && !yield(p) {
				return
			}
		}
	}
}

// window is MaxPending.
func (w *mixedSimulation) window() int {
	switch n := w.Options.MaxPending; {
	case n < 0:
		return math.MaxInt
	case n == 0:
		return 1024
	default:
		return n
	}
}

// checkWindow is called when a message of st was received. What recv returns when its stream is over is not.
func (w *mixedSimulation) checkWindow(st *mixedStream) {
	if st.pending > w.window() && !st.over && !w.aborted {
		w.broken("%d are pending in stream %d", st.pending, st.id)
	}
}

// rest waits until the simulation has come to rest and says what is wrong then.
func (w *mixedSimulation) rest() string {
	testkit.Advance(stuckLimit)
	if w.lingers() {
		time.Sleep(recvGrace)
		synctest.Wait()
	}
	if w.ending && !w.halted {
		w.halt(w.f.Snapshot(math.MaxInt))
	}
	for tries := 1; ; tries++ {
		w.mu.Lock()
		before := len(w.rules)
		w.checkRest()
		wrong := strings.Join(w.rules, "\n")
		if w.rules = w.rules[:before]; before > 0 || wrong == "" || tries > 2 {
			w.mu.Unlock()
			return wrong
		}
		w.mu.Unlock()
		testkit.Advance(stuckLimit) // what was due at the end of the last may have stood still since
	}
}

// stuckLimit is how long a handler that was quick, and suddenly stands still, may hold up what was handed out with it.
const stuckLimit = time.Millisecond

// recvGrace is how long a Run whose context ends at most waits for recv to say why: also if the receiver was just about
// to call it, and then finds no room.
const recvGrace = 50 * time.Millisecond

// lingers says whether a cancelled Run has not returned.
func (w *mixedSimulation) lingers() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.streams, func(st *mixedStream) bool {
		return st.why[flow.FailureContextCancelled] && !st.returned
	})
}

// halt takes back what recv returned as the end of the Flow began, if that was too late for it to be received.
func (w *mixedSimulation) halt(s flow.Snapshot) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.halted = true
	for _, state := range s.Streams {
		st := w.streams[state.ID-1]
		last := len(st.received) - 1
		switch {
		case int(state.Received) == last+1:
		case int(state.Received) == last && st.received[last].attempts == 0:
			if p := st.received[last]; p.ordered {
				st.lanes[p.lane] = st.lanes[p.lane][:len(st.lanes[p.lane])-1]
			}
			st.received = st.received[:last]
			st.pending--
		default:
			w.broken("stream %d has received %d messages of %d", st.id, state.Received, last+1)
		}
	}
}

// restedStream is what a stream has when nothing moves.
type restedStream struct {
	pending, runs, runnable int
	bytes, last             int // pending; of these, in what was received last
}

// checkRest holds the simulation against what must be so whenever nothing moves: as many run as can, what can be read is, and
// nothing else; a Run that is over has returned, and no other.
func (w *mixedSimulation) checkRest() {
	var all restedStream
	rested := map[*mixedStream]restedStream{}
	for _, st := range w.streams {
		if st.returned {
			continue
		}
		var r restedStream
		heads := map[string]bool{}
		for p := range w.pending(st) {
			r.pending++
			r.bytes += p.Bytes
			if p.runs {
				r.runs++
			}
			if int(p.seq) == len(st.received) {
				r.last = p.Bytes
			}
			first := !p.ordered || !heads[p.lane]
			heads[p.lane] = heads[p.lane] || p.ordered
			switch {
			case first && p.ordered && st.skipped[p.Key]:
				w.broken("%v waits, though its key was skipped and its turn has come", p)
			case first && !time.Now().Before(p.due):
				r.runnable++
			}
		}
		rested[st] = r
		all.runs += r.runs
		all.runnable += r.runnable
		all.bytes += r.bytes
		all.last += r.last
	}
	slots := w.Options.Backpressure.Capacity
	if slots == 0 {
		slots = math.MaxInt
	}
	if want := min(slots, all.runnable); all.runs != want || all.runs != len(w.running) {
		w.broken("%d run of %d that can, want %d", all.runs, all.runnable, want)
	}
	limit := int(w.Options.MaxPendingBytes)
	if limit > 0 && all.bytes-all.last >= 2*limit {
		w.broken("%d bytes are pending", all.bytes)
	}
	for st, r := range rested {
		if limit > 0 && r.bytes-r.last >= limit {
			w.broken("%d bytes of stream %d are pending", r.bytes, st.id)
		}
		share := r.bytes*len(rested) < limit && all.bytes < 2*limit
		full := limit > 0 && all.bytes >= limit && r.bytes > 0 && !share
		if !w.ending && !full && st.unread() && r.pending <= w.readAgain(all.runs < slots) {
			w.broken("stream %d is not read, with %d pending; %d bytes", st.id, r.pending, all.bytes)
		}
		if st.over || (st.eof || w.ending) && r.pending == 0 {
			w.broken("stream %d: Run has not returned, with %d pending", st.id, r.pending)
		}
	}
}

// unread says whether something was sent that recv has not returned.
func (st *mixedStream) unread() bool { return len(st.feed) > 0 || st.closed && !st.eof }

// readAgain is how many may be pending in a stream that is read again. It is woken for an eighth of its window, but as
// soon as nothing more can run if there are slots to run it. In FIFO there is no such hurry.
func (w *mixedSimulation) readAgain(free bool) int {
	n := w.window()
	if free && w.Options.Ordering.Mode != flow.OrderingFIFO {
		return n - 1
	}
	return min(n-1, n-n/8)
}

// checkResult checks what Run has returned.
func (w *mixedSimulation) checkResult(st *mixedStream, sum flow.Summary, err error) {
	want := flow.Summary{
		Received: sum.Received, Succeeded: st.sum.Succeeded, Failed: st.begun - st.sum.Succeeded, Dropped: sum.Dropped,
		Committed: sum.Received, Last: sum.Received,
	}
	want.Rejected = sum.Received - st.begun - sum.Dropped
	for i := range sum.Received {
		p := st.received[i]
		want.Retried += uint64(max(0, p.attempts-1))
		if !p.finished {
			want.Unsettled = append(want.Unsettled, p.seq)
		}
	}
	if len(want.Unsettled) > 0 {
		want.Committed = want.Unsettled[0] - 1
	}
	if !reflect.DeepEqual(sum, want) || sum.Rejected < st.sum.Rejected {
		w.broken("stream %d: %+v, want %+v and at least %d rejected", st.id, sum, want, st.sum.Rejected)
	}
	kind := flow.ClassifyFailure(err)
	well := st.eof && len(want.Unsettled) == 0 && int(sum.Received) == len(st.received)
	if ok := kind == flow.FailureNone && well || st.why[kind]; !ok {
		w.broken("stream %d: Run returned %v, %+v; it has reason for %v", st.id, err, sum, st.why)
	}
	for _, p := range w.running {
		if p.st == st {
			w.broken("%v outlives its Run", p)
		}
	}
	st.returned, st.sum = true, sum
}
