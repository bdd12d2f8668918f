package natsflow

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/flow/natsflow/internal/natstest"
	"github.com/nats-io/nats.go"
)

// What a gateway says to the servers, and what they answer, is numbered by a proxy between them. At each number something
// happens, in a run of its own. In the end all of the upload is stored, once and in order; and at any time nothing is
// acknowledged to the client that is not stored.

const faultyUpload = 12 // messages, in calls of at most 5

// countFrames is how many messages go by in a run without a fault.
func countFrames(t *testing.T) map[natstest.Direction]int {
	t.Helper()
	seen := map[natstest.Direction]int{}
	uploadThrough(t, func(f natstest.Frame) natstest.Fate {
		seen[f.Direction] = f.Number
		return natstest.Pass
	})
	return seen
}

// uploadThrough uploads through a gateway that has a proxy before its server, and checks what is stored.
func uploadThrough(t *testing.T, decide func(natstest.Frame) natstest.Fate) {
	t.Helper()
	url := natstest.Embedded(t)
	proxy := natstest.NewProxy(t, url)
	behind := natstest.Connect(t, url)
	_, topic := testTopic(t, behind, nil)
	_, client := serveGateway(t, natstest.Connect(t, proxy.URL(), nats.IgnoreDiscoveredServers()), topic)
	proxy.OnFrame(decide)
	newSender(t, "s", client).upload(t, "u", faultyUpload)
	proxy.OnFrame(nil)
	wantUploads(t, storedMessages(t, behind, topic.Name), map[string]int{"u": faultyUpload})
}

func TestUploadIsStoredOnceInOrderWhateverHappensToAMessage(t *testing.T) {
	frames := countFrames(t)
	if frames[natstest.ToServer] < faultyUpload+4 || frames[natstest.ToClient] < 6 {
		t.Fatalf("only %v went by", frames)
	}
	at := newAtOnce()
	defer at.all.Wait()
	for _, c := range []struct {
		name      string
		direction natstest.Direction
		fate      natstest.Fate
	}{
		{"cut before publish", natstest.ToServer, natstest.CutBefore},
		{"cut after publish", natstest.ToServer, natstest.CutAfter},
		{"lost publish", natstest.ToServer, natstest.Drop},
		{"doubled publish", natstest.ToServer, natstest.Double},
		{"cut before answer", natstest.ToClient, natstest.CutBefore},
		{"lost answer", natstest.ToClient, natstest.Drop},
		{"doubled answer", natstest.ToClient, natstest.Double},
	} {
		at.each(frames[c.direction]+2, func(n int) {
			t.Run(fmt.Sprintf("%s %d", c.name, n), func(t *testing.T) {
				var once sync.Once
				uploadThrough(t, func(f natstest.Frame) (fate natstest.Fate) {
					if f.Direction == c.direction && f.Number >= n {
						once.Do(func() { fate = c.fate })
					}
					return fate
				})
			})
		})
	}
}

// atOnce runs cases of a test side by side, more than there are processors: they wait most of the time.
type atOnce struct {
	all   sync.WaitGroup
	slots chan struct{}
}

func newAtOnce() *atOnce { return &atOnce{slots: make(chan struct{}, 8)} }

// each runs cases 1 to n; with -short every third.
func (a *atOnce) each(n int, run func(n int)) {
	for i := 1; i <= n; i++ {
		if testing.Short() && i%3 != 1 {
			continue
		}
		a.slots <- struct{}{}
		a.all.Go(func() {
			defer func() { <-a.slots }()
			run(i)
		})
	}
}

// A gateway freezes with messages on their way, the client goes on at another one, and then the first one's come through:
// as many as it had sent, and all that it has yet to send.
func TestGatewayThatWakesUpLateStoresNothingTwice(t *testing.T) {
	at := newAtOnce()
	defer at.all.Wait()
	at.each(faultyUpload+6, func(n int) {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			url := natstest.Embedded(t)
			proxy := natstest.NewProxy(t, url)
			behind := natstest.Connect(t, url)
			_, topic := testTopic(t, behind, nil)
			_, frozen := serveGateway(t, natstest.Connect(t, proxy.URL(), nats.IgnoreDiscoveredServers()), topic)
			_, other := serveGateway(t, behind, topic)
			s := newSender(t, "s", frozen, other)
			var once sync.Once
			proxy.OnFrame(func(f natstest.Frame) (fate natstest.Fate) {
				if f.Direction == natstest.ToServer && f.Number >= n && strings.HasPrefix(f.Subject, topic.Name+".") {
					once.Do(func() {
						fate = natstest.Hold
						s.current.Store(1)
						// In the middle of what the other one does.
						time.AfterFunc(time.Duration(n)*20*time.Millisecond, proxy.Release)
					})
				}
				return fate
			})
			s.upload(t, "u", faultyUpload)
			proxy.Release()
			time.Sleep(50 * time.Millisecond) // what was held goes by
			wantUploads(t, storedMessages(t, behind, topic.Name), map[string]int{"u": faultyUpload})
		})
	})
}
