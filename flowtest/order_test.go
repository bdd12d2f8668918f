package flowtest_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	"example.com/flow"
	"example.com/flow/flowtest"
)

// play enters and leaves as the words of script say: "a2" is message 2 of key a, "a2.3" its third attempt, and "-a" is a
// message of a that leaves. It returns the words at which Enter returned an error.
func play(t *testing.T, c *flowtest.OrderChecker[string], script string) (refused string) {
	t.Helper()
	for word := range strings.FieldsSeq(script) {
		if key, leaves := strings.CutPrefix(word, "-"); leaves {
			c.Leave(key)
			continue
		}
		seqText, attemptText, retried := strings.Cut(word[1:], ".")
		if !retried {
			attemptText = "1"
		}
		seq, err := strconv.ParseUint(seqText, 10, 64)
		attempt, err2 := strconv.Atoi(attemptText)
		if err := errors.Join(err, err2); err != nil {
			t.Fatal(err)
		}
		if c.Enter(word[:1], seq, attempt) != nil {
			refused += word + " "
		}
	}
	return strings.TrimSpace(refused)
}

func TestOrderCheckerFindsViolationsAndNothingElse(t *testing.T) {
	for _, c := range []struct {
		name, script string
		refused      string // words at which Enter must return an error
		want         string // what Err must say; "" is nil
	}{
		{name: "nothing at all"},
		{name: "one after the other", script: "a1 -a a2 -a a3 -a"},
		{name: "numbers with gaps", script: "a1 -a a5 -a a1000 -a"},
		{name: "keys side by side", script: "a1 b2 -a c3 a4 -b -a -c b5 -b"},
		{name: "attempts", script: "a1 -a a1.2 -a a1.3 -a a2 -a a2.2 -a"},
		{name: "attempts with a gap, which a wrapper made", script: "a1.2 -a a1.4 -a a2.3 -a"},
		{name: "without numbers", script: "a0 -a a0 -a b0 a0 -b -a"},
		{name: "the largest number", script: "a18446744073709551615 -a a18446744073709551615.2 -a"},
		{
			name: "overlap", script: "a1 a2 -a -a", refused: "a2",
			want: `message 2 of key "a" began while message 1 was running`,
		},
		{
			name: "overlap of other keys' messages too", script: "a1 b2 a3 -a -b -a", refused: "a3",
			want: `message 3 of key "a" began while message 1 was running`,
		},
		{
			name: "overlap without numbers", script: "a0 a0 -a -a a0 -a", refused: "a0",
			want: `a message of key "a" began while another was running`,
		},
		{
			name: "overlap of three", script: "a1 a2 -a a3 -a -a a4 -a", refused: "a2 a3",
			want: "message 2 of key \"a\" began while message 1 was running\nmessage 3 of key \"a\" began while message 2 was running",
		},
		{
			name: "overlap of two attempts", script: "a1 a1.2 -a -a", refused: "a1.2",
			want: `message 1 of key "a" began while message 1 was running`,
		},
		{
			name: "inversion", script: "a1 -a a3 -a a2 -a a4 -a", refused: "a2",
			want: `message 2 of key "a" began after message 3`,
		},
		{
			name: "a message after the first attempt of the next", script: "a1 -a a2 -a a1.2 -a", refused: "a1.2",
			want: `message 1 of key "a" began after message 2`,
		},
		{
			name: "a message twice", script: "a1 -a a1 -a", refused: "a1",
			want: `attempt 1 of message 1 of key "a" began after its attempt 1`,
		},
		{
			name: "attempts backwards", script: "a1.3 -a a1.2 -a", refused: "a1.2",
			want: `attempt 2 of message 1 of key "a" began after its attempt 3`,
		},
		{
			name: "overlap and inversion", script: "a2 a1 -a -a", refused: "a1",
			want: "message 1 of key \"a\" began while message 2 was running\nmessage 1 of key \"a\" began after message 2",
		},
		{
			name: "inversions behind the latest, whatever has begun after that", script: "a5 -a a3 -a a4 -a a5 -a a5.2 -a a6 -a",
			refused: "a3 a4 a5",
			want: "message 3 of key \"a\" began after message 5\nmessage 4 of key \"a\" began after message 5\n" +
				"attempt 1 of message 5 of key \"a\" began after its attempt 1",
		},
		{
			name: "attempts behind the latest", script: "a1.3 -a a1.1 -a a1.2 -a a1.4 -a", refused: "a1.1 a1.2",
			want: "attempt 1 of message 1 of key \"a\" began after its attempt 3\nattempt 2 of message 1 of key \"a\" began after its attempt 3",
		},
		{
			name: "an inversion around one without a number", script: "a5 -a a0 -a a3 -a", refused: "a3",
			want: `message 3 of key "a" began after message 5`,
		},
		{
			name: "overlap with one that is behind the latest", script: "a5 -a a3 a6 -a -a", refused: "a3 a6",
			want: "message 3 of key \"a\" began after message 5\nmessage 6 of key \"a\" began while message 3 was running",
		},
		{
			name: "leaving what has not entered", script: "-a b1 -b -b",
			want: "a message of key \"a\" left that had not entered\na message of key \"b\" left that had not entered",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			var order flowtest.OrderChecker[string]
			if got := play(t, &order, c.script); got != c.refused {
				t.Errorf("Enter returned an error at %q, want %q", got, c.refused)
			}
			got := ""
			if err := order.Err(); err != nil {
				got = err.Error()
			}
			if got != c.want {
				t.Errorf("Err() is\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

func TestOrderCheckerKeepsTheFirstViolationsAndCountsTheOthers(t *testing.T) {
	var order flowtest.OrderChecker[int]
	for seq := range 20 {
		_ = order.Enter(7, uint64(20-seq), 1)
		order.Leave(7)
	}
	lines := strings.Split(order.Err().Error(), "\n")
	if len(lines) != 11 || lines[0] != "message 19 of key 7 began after message 20" ||
		lines[9] != "message 10 of key 7 began after message 20" || lines[10] != "and 9 more violations of the order" {
		t.Errorf("Err() is %q", lines)
	}
}

func TestOrderCheckerCutsAndQuotesKeys(t *testing.T) {
	var order flowtest.OrderChecker[string]
	order.Leave("\xff" + strings.Repeat("k", 1<<20))
	if want, got := `a message of key "\xff`+strings.Repeat("k", 63)+`" left that had not entered`, order.Err().Error(); got != want {
		t.Errorf("Err() is %.200q, want %q", got, want)
	}
}

// The checker must see a Flow's promises kept, and see through a handler's panic, a Goexit and a retry.
func TestOrderCheckerIsContentWithAFlow(t *testing.T) {
	type laneOf struct {
		stream int
		key    string
	}
	for _, scope := range []flow.OrderingScope{flow.ScopeStream, flow.ScopeFlow} {
		var perStream flowtest.OrderChecker[laneOf]
		var overall flowtest.OrderChecker[string]
		f, err := flow.New(func(_ context.Context, m flow.Message[[2]int]) error {
			_ = perStream.Enter(laneOf{m.Value[0], m.Key}, m.Seq, m.Attempt)
			defer perStream.Leave(laneOf{m.Value[0], m.Key})
			if scope == flow.ScopeFlow {
				_ = overall.Enter(m.Key, 0, m.Attempt)
				defer overall.Leave(m.Key)
			}
			runtime.Gosched()
			if m.Attempt == 1 && m.Seq%7 == 0 {
				return errors.New("once more")
			}
			return nil
		}, func(v [2]int) string { return strconv.Itoa(v[1] % 5) }, flow.Options{
			Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO, Scope: scope},
			Retry:    flow.RetryOptions{MaxAttempts: 2},
		})
		if err != nil {
			t.Fatal(err)
		}
		var streams sync.WaitGroup
		for stream := range 4 {
			streams.Go(func() {
				n := 0
				source := flowtest.NewSource[[2]int](t)
				for ; n < 200; n++ {
					source.Send([2]int{stream, n})
				}
				source.End()
				if _, err := f.Run(t.Context(), source.Recv); err != nil {
					t.Error(err)
				}
			})
		}
		streams.Wait()
		if err := errors.Join(perStream.Err(), overall.Err()); err != nil {
			t.Error(err)
		}
	}
}

// A Flow that keeps no order is told apart, in whatever way its messages run.
func TestOrderCheckerFindsThatAFlowKeepsNoOrder(t *testing.T) {
	var order flowtest.OrderChecker[string]
	both := make(chan struct{}) // closed when two messages have begun
	var begun sync.WaitGroup
	begun.Add(2)
	go func() { begun.Wait(); close(both) }()
	f, err := flow.New(func(_ context.Context, m flow.Message[int]) error {
		defer order.Leave(m.Key)
		_ = order.Enter(m.Key, m.Seq, m.Attempt)
		begun.Done()
		<-both
		return nil
	}, func(int) string { return "a" }, flow.Options{Ordering: flow.OrderingOptions{Mode: flow.OrderingNone}})
	if err != nil {
		t.Fatal(err)
	}
	source := flowtest.NewSource(t, 1, 2)
	source.End()
	if _, err := f.Run(t.Context(), source.Recv); err != nil {
		t.Fatal(err)
	}
	if err := order.Err(); err == nil || !strings.Contains(err.Error(), "was running") {
		t.Errorf("Err() is %v, want an overlap", err)
	}
}

func ExampleOrderChecker() {
	var order flowtest.OrderChecker[string]
	f, err := flow.New(func(_ context.Context, m flow.Message[string]) error {
		_ = order.Enter(m.Key, m.Seq, m.Attempt) // an error is kept for Err
		defer order.Leave(m.Key)
		return nil
	}, func(device string) string { return device }, flow.Options{
		Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	devices := make(chan string, 4)
	for _, device := range []string{"pump", "valve", "pump", "pump"} {
		devices <- device
	}
	close(devices)
	sum, err := f.Run(context.Background(), flow.FromChan(context.Background(), devices))
	fmt.Println(sum.Succeeded, err, order.Err())

	// What it says of a handler that is called in the wrong order:
	_ = order.Enter("fan", 2, 1)
	fmt.Println(order.Enter("fan", 1, 1))
	// Output:
	// 4 <nil> <nil>
	// message 1 of key "fan" began while message 2 was running
	// message 1 of key "fan" began after message 2
}
