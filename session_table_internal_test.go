package flow

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
)

// contender is a stream that wants the one session of a test.
type contender struct {
	table  *sessionTable
	turn   *sessionTurn
	ctx    context.Context
	cancel context.CancelCauseFunc
	done   chan struct{}
	why    *Failure // why it has not got the session
}

const testTakeover = 10 * time.Second

// contend enters with an epoch, 0 for a claim, and waits in the background.
func contend(t *testing.T, table *sessionTable, epoch uint64) *contender {
	t.Helper()
	c := &contender{table: table, done: make(chan struct{})}
	c.ctx, c.cancel = context.WithCancelCause(t.Context())
	c.turn = &sessionTurn{
		id: SessionID{"o", "n"}, epoch: epoch, came: make(chan struct{}), end: func(f *Failure) { c.cancel(f) },
	}
	go func() {
		defer close(c.done)
		if c.why = table.enter(c.turn); c.why == nil {
			c.why = table.wait(c.ctx, c.turn, testTakeover)
		}
		if c.why != nil {
			table.leave(c.turn)
		}
	}()
	synctest.Wait()
	return c
}

// state says what became of it: "waits", "holds", "ended" by a next one while it holds, or the code of the refusal and the
// epoch that it names.
func (c *contender) state() string {
	synctest.Wait()
	select {
	case <-c.done:
	default:
		return "waits"
	}
	why := c.why
	text := "holds"
	if why != nil {
		text = "refused"
	} else if why = endOfContext(c.ctx); why != nil {
		text = "ended"
	} else {
		return text
	}
	text += " " + why.GRPCStatus().Code().String()
	if e := sessionErrorOf(why); e != nil && e.epoch > 0 {
		if !errors.Is(why, ErrSessionMoved) {
			panic("it moved and is no ErrSessionMoved")
		}
		text += fmt.Sprint(" ", e.epoch)
	}
	return text
}

func (c *contender) want(t *testing.T, state string) {
	t.Helper()
	if got := c.state(); got != state {
		t.Fatalf("it is %q, want %q", got, state)
	}
}

// begin has the holder learn its epoch.
func (c *contender) begin(epoch uint64) { c.table.began(c.turn, epoch) }

func (c *contender) leave() {
	c.table.leave(c.turn)
	synctest.Wait()
}

// inTable runs test in a bubble and sees to it that nothing stays in the table.
func inTable(t *testing.T, test func(t *testing.T, table *sessionTable)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		table := newSessionTable()
		test(t, table)
		if len(table.slots) > 0 {
			t.Errorf("%d sessions stay in the table", len(table.slots))
		}
	})
}

func TestSessionTableEndsTheEarlierStreamOfTheSameWriter(t *testing.T) {
	inTable(t, func(t *testing.T, table *sessionTable) {
		first := contend(t, table, 0)
		first.want(t, "holds")
		first.begin(7)
		second := contend(t, table, 7)
		first.want(t, "ended Aborted 7")
		second.want(t, "waits")
		third := contend(t, table, 7)
		second.want(t, "refused Aborted 7")
		third.want(t, "waits")
		first.leave()
		third.want(t, "holds")
		third.begin(7)
		third.leave()
	})
}

func TestSessionTableEndsTheWriterForAClaim(t *testing.T) {
	inTable(t, func(t *testing.T, table *sessionTable) {
		writer := contend(t, table, 7)
		writer.begin(7)
		claim := contend(t, table, 0)
		writer.want(t, "ended FailedPrecondition 8")
		claim.want(t, "waits")
		back := contend(t, table, 7) // the writer, which has not heard of the claim
		back.want(t, "refused FailedPrecondition 8")
		claim.want(t, "waits")
		again := contend(t, table, 0) // the claim whose answer was lost
		claim.want(t, "refused FailedPrecondition 8")
		writer.leave()
		again.want(t, "holds")
		again.begin(8)
		back = contend(t, table, 7)
		back.want(t, "refused FailedPrecondition 8")
		again.want(t, "holds")
		again.leave()
	})
}

func TestSessionTableLowerEpochDisturbsNobody(t *testing.T) {
	inTable(t, func(t *testing.T, table *sessionTable) {
		holder := contend(t, table, 7)
		contend(t, table, 6).want(t, "refused FailedPrecondition 7")
		holder.want(t, "holds")
		waiter := contend(t, table, 9) // the server has forgotten
		holder.want(t, "ended FailedPrecondition 9")
		contend(t, table, 8).want(t, "refused FailedPrecondition 9")
		waiter.want(t, "waits")
		holder.leave()
		waiter.want(t, "holds")
		waiter.leave()
	})
}

func TestSessionTableLetsABeginningClaimLearnItsEpoch(t *testing.T) {
	inTable(t, func(t *testing.T, table *sessionTable) {
		claim := contend(t, table, 0)
		deposed := contend(t, table, 7)
		claim.want(t, "holds") // it may well be the seven's own
		deposed.want(t, "waits")
		claim.begin(8)
		deposed.want(t, "refused FailedPrecondition 8")
		claim.want(t, "holds")
		claim.leave()

		claim = contend(t, table, 0)
		above := contend(t, table, 7)
		claim.begin(1) // the store has forgotten
		claim.want(t, "ended FailedPrecondition 7")
		claim.leave()
		above.want(t, "holds")
		above.leave()

		claim = contend(t, table, 0)
		next := contend(t, table, 0)
		claim.want(t, "ended FailedPrecondition 1")
		contend(t, table, 7).want(t, "refused FailedPrecondition 8")
		claim.leave()
		next.want(t, "holds")
		next.leave()
	})
}

func TestSessionTableTakeoverTimesOut(t *testing.T) {
	inTable(t, func(t *testing.T, table *sessionTable) {
		holder := contend(t, table, 7)
		waiter := contend(t, table, 7)
		time.Sleep(testTakeover - 1)
		waiter.want(t, "waits")
		time.Sleep(time.Nanosecond)
		waiter.want(t, "refused Unavailable")
		if detailOfRetry(waiter.why) == 0 {
			t.Error("it is not told when to try again")
		}
		next := contend(t, table, 7)
		holder.leave()
		next.want(t, "holds")
		next.leave()
	})
}

func TestSessionTableWaitEndsWithItsStream(t *testing.T) {
	inTable(t, func(t *testing.T, table *sessionTable) {
		holder := contend(t, table, 7)
		waiter := contend(t, table, 7)
		waiter.cancel(&Failure{Kind: FailureShutdown, Err: reasonShutdown})
		waiter.want(t, "refused Unavailable")
		if waiter.why.Kind != FailureShutdown {
			t.Errorf("refused with %v", waiter.why)
		}
		waiter = contend(t, table, 7)
		waiter.cancel(nil)
		waiter.want(t, "refused Canceled")
		holder.leave()
	})
}

func TestSessionTableKeepsSessionsApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newSessionTable()
		a := contend(t, table, 7)
		b := &sessionTurn{id: SessionID{"p", "n"}, epoch: 7, came: make(chan struct{})}
		if f := table.enter(b); f != nil {
			t.Fatal(f)
		}
		if f := table.wait(t.Context(), b, testTakeover); f != nil {
			t.Fatal(f)
		}
		a.want(t, "holds")
	})
}

// detailOfRetry is the delay of the RetryInfo in f's status, in seconds.
func detailOfRetry(f *Failure) int64 {
	for _, d := range f.GRPCStatus().Details() {
		if info, ok := d.(interface{ GetRetryDelay() *durationpb.Duration }); ok {
			return info.GetRetryDelay().GetSeconds()
		}
	}
	return 0
}
