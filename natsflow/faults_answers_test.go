package natsflow

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"example.com/flow/natsflow/internal/effects"
	"example.com/flow/natsflow/internal/natstest"
	"example.com/flow/natsflow/partition"
)

// scriptTopic is a topic of one partition with the script's messages. With deaths its record says that so many holders
// have died, so that all messages are suspects.
func scriptTopic(t testing.TB, js jetstream.JetStream, name string, deaths int) (topic Topic, values []string) {
	t.Helper()
	topic = Topic{Name: name, Partitions: 1, Replicas: 1}
	if err := Ensure(t.Context(), js, topic); err != nil {
		t.Fatal(err)
	}
	publish(t, js, topic, sequence(scriptEach, scriptKeys...)...)
	if deaths > 0 {
		kv, err := js.KeyValue(t.Context(), topic.leaseBucket())
		if err != nil {
			t.Fatal(err)
		}
		r := record{Deaths: partition.Deaths{Count: deaths, Doubt: 1 << 40, Reach: partition.DefaultWindow}}
		if _, err := (kvBucket{kv: kv}).put(t.Context(), 0, r.marshal(), 0); err != nil {
			t.Fatal(err)
		}
	}
	values = slices.DeleteFunc(sequence(scriptEach, scriptKeys...), func(v string) bool { return v == failsEver })
	return topic, values
}

// Whatever answer a worker does not get, it goes on: nothing is lost, repeated or out of order, and it keeps the partition.
func TestNoLostAnswerChangesWhatHappens(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	o := scriptOptions(WorkerOptions{Lease: 5 * time.Second, Commit: 10 * time.Millisecond})
	try := func(t *testing.T, name string, deaths int, before func(at step) error) (all []step) {
		topic, values := scriptTopic(t, js, name, deaths)
		var e effects.Store
		s := &steps{before: func(at step) error {
			if !strings.HasSuffix(at.Kind, " sent") && !strings.HasSuffix(at.Kind, " answered") && at.Kind != "record read" {
				return nil
			}
			all = append(all, at)
			return before(at)
		}}
		var l eventLog
		own := o
		own.Observer = l.observe
		w, err := NewWorker(js, topic, words, s.scripted(func(o Origin, v string) error {
			e.Apply(effects.Effect{Seq: o.Seq, Epoch: o.Epoch, Value: v})
			return nil
		}), own)
		if err != nil {
			t.Fatal(err)
		}
		s.between(w)
		plain := another(t, w, (&steps{}).scripted(nil)) // looks without a step
		stop := runWorker(t, w)
		await(t, "all is settled", settledAll(t, plain))
		stop()
		s.late.Wait()
		if j := e.Judge(values); len(j.Lost)+len(j.Reordered)+len(j.Guarded)+j.Repeated+j.Stale > 0 {
			t.Errorf("%v: %v", j, &e)
		}
		if n := len(l.of(EventLost)); n > 0 {
			t.Errorf("the partition was lost %d times", n)
		}
		if letters := deadOf(t, plain); len(letters) != 1 || string(letters[0].Data) != failsEver {
			t.Errorf("dead letters: %v", letters)
		}
		states, err := plain.Partitions(t.Context())
		if err != nil || states[0].Holder != "" || states[0].Lag > 0 || states[0].Suspect != 0 {
			t.Errorf("after the end: %+v, %v", states, err)
		}
		return all
	}
	kinds := map[string]bool{}
	for _, deaths := range []int{0, defaultQuarantine} {
		all := try(t, fmt.Sprintf("none%d", deaths), deaths, func(step) error { return nil })
		stride := 1
		if testing.Short() {
			stride = 7
		}
		for _, fault := range []error{errLost, errLate} {
			t.Run(fmt.Sprintf("%v/deaths=%d", fault, deaths), func(t *testing.T) {
				for i := 0; i < len(all); i += stride {
					kinds[all[i].Kind] = true
				}
				sideBySide(t, len(all), stride, 10, func(i int) string { return fmt.Sprintf("%s/%d", all[i].Kind, all[i].N) }, func(t *testing.T, i int) {
					try(t, fmt.Sprintf("lost%d-%d-%v", deaths, i, fault == errLate), deaths, func(at step) error {
						if at == all[i] {
							return fault
						}
						return nil
					})
				})
			})
		}
	}
	for _, kind := range []string{"claim", "commit", "release", "mark", "dead letter"} {
		if !testing.Short() && (!kinds[kind+" sent"] || !kinds[kind+" answered"]) {
			t.Errorf("no step is of the kind %q: %v", kind, kinds)
		}
	}
}
