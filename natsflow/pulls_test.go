package natsflow

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"pgregory.net/rapid"

	"example.com/flow/natsflow/partition"
)

func TestAPlaceIsWhatTheClientLibraryReads(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		token := rapid.StringMatching(`[a-zA-Z0-9_$-]{1,8}`)
		number := rapid.Custom(func(t *rapid.T) string { return strconv.FormatInt(rapid.Int64Min(0).Draw(t, "number"), 10) })
		var tokens []string
		for range rapid.SampledFrom([]int{2, 4}).Draw(t, "names") {
			tokens = append(tokens, token.Draw(t, "name"))
		}
		for range 5 {
			tokens = append(tokens, number.Draw(t, "number"))
		}
		if len(tokens) == 9 && rapid.Bool().Draw(t, "with token") {
			tokens = append(tokens, token.Draw(t, "token"))
		}
		reply := "$JS.ACK." + strings.Join(tokens, ".")
		want, err := (&nats.Msg{Reply: reply, Sub: &nats.Subscription{}}).Metadata()
		if err != nil {
			t.Fatal(err)
		}
		at, ok := placeOf(reply)
		if !ok || at.position != want.Sequence.Stream || at.number != want.Sequence.Consumer || !time.Unix(0, at.stored).Equal(want.Timestamp) {
			t.Fatalf("%s: %+v, %v; want %+v", reply, at, ok, want)
		}
	})
}

func TestAReplySubjectThatIsNoPlaceIsNone(t *testing.T) {
	for _, reply := range []string{
		"", "$JS.ACK.", "_INBOX.a.b", "$JS.ACK.s.c.1.2.3.4", "$JS.ACK.s.c.1.2.3.4.5.6", "$JS.ACK.s.c.1.x.3.4.5", "$JS.ACK.s.c.1.2..4.5",
		"JS.ACK.s.c.1.2.3.4.5", "$JS.ACK.d.a.s.c.1.2.-3.4.5",
		"$JS.ACK.s.c.1.20000000000000000000.3.4.5",
	} {
		if at, ok := placeOf(reply); ok {
			t.Errorf("%q: %+v", reply, at)
		}
	}
}

func TestToReadAMessageAllocatesNothing(t *testing.T) {
	r := &reader[[]byte]{codec: Codec[[]byte]{
		Key: func([]byte) string { return "" }, Unmarshal: func(b []byte) ([]byte, error) { return b, nil },
	}}
	m := &nats.Msg{
		Reply: "$JS.ACK.s.c.1.2.3.4.5", Data: []byte("x"),
		Header: nats.Header{headerKey: {"key"}, headerID: {"owner/name/7"}},
	}
	if n := testing.AllocsPerRun(100, func() {
		at, ok := placeOf(m.Reply)
		if p := r.parse(m, at); !ok || p.Key != "key" || p.Number != 7 || p.Position != 2 {
			t.Fatalf("%v, %+v", ok, p)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// The prefix is what the client library makes of the same, which shows in the subjects of its requests.
func TestPullsAskWhereTheContextDoes(t *testing.T) {
	js, _ := topicOf(t, 1)
	domain, err := jetstream.NewWithDomain(js.Conn(), "hub")
	if err != nil {
		t.Fatal(err)
	}
	for js, want := range map[jetstream.JetStream]string{js: "$JS.API.", domain: "$JS.hub.API."} {
		if got := apiPrefix(js.Options()); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	for _, prefix := range []string{"other.js", "other.js."} {
		js, err := jetstream.NewWithAPIPrefix(js.Conn(), prefix)
		if err != nil {
			t.Fatal(err)
		}
		if got := apiPrefix(js.Options()); got != "other.js." {
			t.Errorf("%q: %q", prefix, got)
		}
	}
}

// readerOf is a reader of partition 0, from its beginning.
func readerOf(t testing.TB, js jetstream.JetStream, topic Topic) *reader[string] {
	r := &reader[string]{js: js, topic: topic, codec: words}
	t.Cleanup(r.close)
	return r
}

// read reads so many messages.
func read(t testing.TB, r *reader[string], n int) (values []string) {
	t.Helper()
	for range n {
		m, err := r.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		values = append(values, m.Value)
	}
	return values
}

func TestMoreMessagesThanAPullAsksForComeInOrder(t *testing.T) {
	js, topic := topicOf(t, 1)
	values := sequence(3*pullMax, "a")
	for n, v := range values {
		m, err := storedWord(topic, messageID{session: "a/b", number: uint64(n)}, v)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := js.PublishMsgAsync(m); err != nil {
			t.Fatal(err)
		}
	}
	<-js.PublishAsyncComplete()
	if got := read(t, readerOf(t, js, topic), len(values)); !slices.Equal(got, values) {
		t.Errorf("%d, not in order", len(got))
	}
}

func TestAMessageThatIsLostOnItsWayIsReadAgainInItsTurn(t *testing.T) {
	js, topic := topicOf(t, 1)
	values := sequence(10, "a")
	publish(t, js, topic, values...)
	r := readerOf(t, js, topic)
	got := read(t, r, 1)
	await(t, "all have arrived", func() bool { return len(r.pulls.arrived) == 9 })
	<-r.pulls.arrived // the second
	if got = append(got, read(t, r, 9)...); !slices.Equal(got, values) {
		t.Errorf("%v", got)
	}
}

// Each way breaks the pulls of a reader; it goes on behind its last message.
func TestAReaderGoesOnWhenItsConsumer(t *testing.T) {
	for name, break_ := range map[string]func(t *testing.T, r *reader[string]){
		"is deleted": func(t *testing.T, r *reader[string]) {
			parts := strings.Split(r.pulls.subject, ".")
			if err := r.js.DeleteConsumer(t.Context(), r.topic.Name, parts[len(parts)-1]); err != nil {
				t.Fatal(err)
			}
		},
		"was never known": func(t *testing.T, r *reader[string]) {
			r.pulls.subject += "x"
			if err := r.pulls.ask(); err != nil {
				t.Fatal(err)
			}
			await(t, "it is told that nobody listens", func() bool { return len(r.pulls.arrived) == 1 })
		},
		"is on another connection": func(t *testing.T, r *reader[string]) {
			if err := r.js.Conn().ForceReconnect(); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			js, topic := topicOf(t, 1)
			values := sequence(2, "a")
			publish(t, js, topic, values[0])
			r := readerOf(t, js, topic)
			got := read(t, r, 1)
			broken := r.pulls
			break_(t, r)
			await(t, "the server is there", func() bool { _, err := js.AccountInfo(t.Context()); return err == nil })
			publish(t, js, topic, values[1])
			if got = append(got, read(t, r, 1)...); !slices.Equal(got, values) {
				t.Errorf("%v", got)
			}
			if r.pulls == broken && name != "is on another connection" { // there the server may have kept the pull
				t.Error("the consumer is the same")
			}
		})
	}
}

// said is what a server says of a pull.
func said(code string, more ...string) nats.Header {
	h := nats.Header{"Status": {code}}
	for i := 0; i < len(more); i += 2 {
		h[more[i]] = []string{more[i+1]}
	}
	return h
}

func TestWhatAnExpiredPullLeavesIsAskedForAgain(t *testing.T) {
	p := &pulls{asked: 400}
	if err := p.heed(said("408", "Nats-Pending-Messages", "150")); err != nil || p.asked != 250 {
		t.Errorf("%v; %d are asked for", err, p.asked)
	}
	for _, left := range []string{"", "many"} {
		if p.heed(said("408", "Nats-Pending-Messages", left)) == nil {
			t.Errorf("%q was understood", left)
		}
	}
}

func TestAnythingElseThatTheServerSaysEndsThePulls(t *testing.T) {
	for _, code := range []string{"", "400", "404", "409", "503"} {
		if err := new(pulls).heed(said(code, "Description", "why")); err == nil || !strings.Contains(err.Error(), "why") {
			t.Errorf("%s: %v", code, err)
		}
	}
}

func TestHeartbeatsAloneAreLookedIntoOnceInAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := new(pulls)
		var idle []string
		for second := range 13 {
			if err := p.heed(said("100")); errors.Is(err, errIdle) {
				idle = append(idle, fmt.Sprint(second))
			} else if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		if want := []string{"5", "10"}; !slices.Equal(idle, want) {
			t.Errorf("in the seconds %v", idle)
		}
	})
}

func TestSilenceOfTheServerEndsThePulls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pulls{arrived: make(chan *nats.Msg), silence: time.NewTimer(0)}
		p.silence.Stop()
		began := time.Now()
		if _, err := p.receive(t.Context()); !errors.Is(err, errSilence) || time.Since(began) != 2*pullHeartbeat {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

func TestAHandlersContextIsOneAllocation(t *testing.T) {
	h := &holding[string]{partition: 3, epoch: 4}
	m := &partition.Message[string]{Position: 5, Session: "a/b", Number: 6}
	ctx := t.Context()
	if n := testing.AllocsPerRun(100, func() { sink = h.context(ctx, m, true) }); n != 1 {
		t.Errorf("%v allocations", n)
	}
	if o, ok := FromContext(sink); !ok || o != (Origin{Partition: 3, Seq: 5, Epoch: 4, Session: "a/b", Number: 6, Replayed: true}) {
		t.Errorf("%+v, %v", o, ok)
	}
}

var sink context.Context
