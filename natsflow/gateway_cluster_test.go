package natsflow

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/flow"
	"example.com/flow/natsflow/internal/natstest"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// The same as in gateway_faults_test.go, with three servers: something befalls the stream's leader at each of the messages
// that a gateway publishes.

type cluster struct {
	*natstest.Cluster
	js jetstream.JetStream
}

func startCluster(t *testing.T) cluster {
	t.Helper()
	if testing.Short() {
		t.Skip("starts three servers")
	}
	c := natstest.Start(t, 3)
	return cluster{Cluster: c, js: natstest.Connect(t, c.URLs())}
}

// uploadWhile uploads to a topic of its own. befall is called once, with the stream's leader, before the gateway's n-th
// message goes by.
func (c cluster) uploadWhile(t *testing.T, n int, befall func(topic Topic, leader int)) {
	t.Helper()
	_, topic := testTopic(t, c.js, func(topic *Topic) {
		topic.Name, topic.Replicas = strings.ReplaceAll(t.Name(), "/", "-"), 3
	})
	leader, err := c.Leader(c.js, topic.Name)
	if err != nil {
		t.Fatal(err)
	}
	// The gateway's own server stays, so that it is the leader that is missing and not the connection.
	proxy := natstest.NewProxy(t, c.URL((leader+1)%3))
	_, client := serveGateway(t, natstest.Connect(t, proxy.URL(), nats.IgnoreDiscoveredServers()), topic)
	var once sync.Once
	befallen := make(chan struct{})
	proxy.OnFrame(func(f natstest.Frame) natstest.Fate {
		if f.Direction == natstest.ToServer && f.Number >= n && strings.HasPrefix(f.Subject, topic.Name+".") {
			once.Do(func() {
				befall(topic, leader)
				close(befallen)
			})
		}
		return natstest.Pass
	})
	newSender(t, "s", client).upload(t, "u", faultyUpload)
	proxy.OnFrame(nil)
	wantUploads(t, storedMessages(t, c.js, topic.Name), map[string]int{"u": faultyUpload})
	select {
	case <-befallen:
	default:
		t.Errorf("fewer than %d messages went by", n)
	}
}

func TestUploadIsStoredOnceInOrderWhateverBecomesOfTheLeader(t *testing.T) {
	c := startCluster(t)
	at := newAtOnce()
	at.each(faultyUpload, func(n int) {
		t.Run(fmt.Sprint("steps down ", n), func(t *testing.T) {
			c.uploadWhile(t, n, func(topic Topic, _ int) {
				if err := natstest.StepDown(c.js, topic.Name); err != nil {
					t.Error(err)
				}
			})
		})
	})
	at.all.Wait()
	for _, n := range []int{3, 8} {
		t.Run(fmt.Sprint("is killed ", n), func(t *testing.T) {
			var back sync.WaitGroup
			c.uploadWhile(t, n, func(_ Topic, leader int) {
				c.Kill(leader)
				back.Go(func() {
					time.Sleep(300 * time.Millisecond)
					if err := c.Run(leader); err != nil {
						t.Error(err)
					}
				})
			})
			back.Wait()
		})
		t.Run(fmt.Sprint("is stopped ", n), func(t *testing.T) {
			var back sync.WaitGroup
			c.uploadWhile(t, n, func(_ Topic, leader int) {
				c.Stop(leader)
				back.Go(func() {
					time.Sleep(2500 * time.Millisecond) // longer than a gateway is patient
					c.Continue(leader)
				})
			})
			back.Wait()
		})
	}
}

// Two of three servers are gone for a while: nothing can be stored. What is acknowledged in that time must be there when
// they are back, without the one that was left.
func TestNothingIsAcknowledgedWithoutAMajority(t *testing.T) {
	c := startCluster(t)
	_, topic := testTopic(t, c.js, func(topic *Topic) { topic.Replicas = 3 })
	leader, err := c.Leader(c.js, topic.Name)
	if err != nil {
		t.Fatal(err)
	}
	gw := newGateway(t, natstest.Connect(t, c.URL(leader)), topic)
	f := newFlow(t, gw, nil)
	f2 := newFlow(t, gw, func(o *flow.Options) {
		o.Sessions = nil
		o.Retry.MaxAttempts = 4
		o.Retry.Backoff = 10 * time.Millisecond
	})
	if s, err := run(f, "s", 1, requests("u", 1, 5)...); err != nil || s.Committed != 5 {
		t.Fatal(s, err)
	}
	others := []int{(leader + 1) % 3, (leader + 2) % 3}
	for _, i := range others {
		c.Kill(i)
	}
	var acknowledged atomic.Int64
	var streams sync.WaitGroup
	for i := range 3 {
		streams.Go(func() {
			s, err := run(f2, "", 0, requests(fmt.Sprint("v", i), 1, 4)...) // tries again in place, with the same ids
			if err == nil {
				t.Errorf("stored without a majority: %+v", s)
			}
			acknowledged.Add(int64(s.Committed))
		})
	}
	streams.Wait()
	if acknowledged.Load() > 0 {
		t.Errorf("%d messages were acknowledged", acknowledged.Load())
	}
	c.Kill(leader)
	for _, i := range others {
		if err := c.Run(i); err != nil {
			t.Fatal(err)
		}
	}
	wantUploads(t, storedMessages(t, c.js, topic.Name), map[string]int{"u": 5})
}

// Whether what was stored is on a majority is asked for by the subjects that were sent to: the codec is called before anything
// of its message is sent, and never after.
func TestKeyIsAskedForOnceForEachMessage(t *testing.T) {
	c := startCluster(t)
	_, topic := testTopic(t, c.js, func(topic *Topic) { topic.Replicas = 3 })
	gw := newGateway(t, c.js, topic)
	gw.pub.patience = 20 * time.Second
	key := gw.codec.Key
	asked := map[*request]int{}
	gw.codec.Key = func(r *request) string {
		if asked[r]++; asked[r] > 1 {
			panic("asked again")
		}
		return key(r)
	}
	if s, err := run(oneCall(t, gw, 20, nil), "", 0, requests("u", 1, 20)...); err != nil || s.Committed != 20 {
		t.Error(s, err)
	}
	wantUploads(t, storedMessages(t, c.js, topic.Name), map[string]int{"u": 20})
}
