package natsflow

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// bucket is where the workers of a topic keep their records and show that they live.
type bucket interface {
	// get returns a partition's record and its revision; nil and 0 if there is none.
	get(ctx context.Context, partition int) (value []byte, revision uint64, err error)
	// put writes a partition's record if it has this revision (0: if there is none), and returns the new one. An error
	// does not say that nothing was written.
	put(ctx context.Context, partition int, value []byte, revision uint64) (uint64, error)
	// beat shows that the worker lives.
	beat(ctx context.Context, worker string) error
	// leave takes back what beat showed.
	leave(ctx context.Context, worker string) error
	// watch returns all there is, then a change with known set, then what changes. The channel is closed when the watch
	// has broken, or after stop.
	watch(ctx context.Context) (changes <-chan change, stop func(), err error)
	// tidy removes what workers have written to show that they live, or have left, and have not written anew for so long.
	// No watch tells of it.
	tidy(ctx context.Context, age time.Duration) error
}

// change is news of the bucket.
type change struct {
	known     bool // all that was there has been told
	partition int  // of a record: -1 otherwise
	value     []byte
	revision  uint64
	worker    string        // of a worker: "" otherwise
	gone      bool          // the worker has left
	age       time.Duration // how long ago the worker has beaten, if that was before the watch began
}

const (
	leasePrefix  = "lease."
	workerPrefix = "worker."
)

// kvBucket is a bucket in NATS.
type kvBucket struct {
	js jetstream.JetStream
	kv jetstream.KeyValue
}

func leaseKey(partition int) string { return leasePrefix + strconv.Itoa(partition) }

func (b kvBucket) get(ctx context.Context, partition int) ([]byte, uint64, error) {
	e, err := b.kv.Get(ctx, leaseKey(partition))
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	return e.Value(), e.Revision(), nil
}

func (b kvBucket) put(ctx context.Context, partition int, value []byte, revision uint64) (uint64, error) {
	return b.kv.Update(ctx, leaseKey(partition), value, revision)
}

func (b kvBucket) beat(ctx context.Context, worker string) error {
	_, err := b.kv.Put(ctx, workerPrefix+worker, nil)
	return err
}

func (b kvBucket) leave(ctx context.Context, worker string) error {
	return b.kv.Purge(ctx, workerPrefix+worker)
}

func (b kvBucket) watch(ctx context.Context) (<-chan change, func(), error) {
	w, err := b.kv.WatchAll(ctx)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	changes := make(chan change)
	go func() {
		defer close(changes)
		defer stopWatch(w)
		tell := func(c change) bool {
			select {
			case changes <- c:
				return true
			case <-ctx.Done():
				return false
			}
		}
		var first firstBeats
		for known := false; ; {
			var e jetstream.KeyValueEntry
			var ok bool
			select {
			case e, ok = <-w.Updates():
			case <-ctx.Done():
			}
			if !ok {
				return
			}
			c := change{partition: -1}
			switch {
			case e == nil:
				for _, c := range first.aged() {
					if !tell(c) {
						return
					}
				}
				c.known, known = true, true
			case !c.parse(e):
				continue
			case !known:
				first.note(e.Created())
				if c.worker != "" {
					first.add(c, e.Created())
					continue
				}
			}
			if !tell(c) {
				return
			}
		}
	}()
	return changes, cancel, nil
}

// firstBeats are what a watch is told of workers before what changes: the last beat of each, also of those that died long
// ago. When each of them was, compared with the last that was written at all, is for one clock to say, the servers', and not
// for those of workers.
type firstBeats struct {
	changes []change
	created []time.Time
	last    time.Time // the latest
}

// note notes that something was written.
func (f *firstBeats) note(created time.Time) {
	if created.After(f.last) {
		f.last = created
	}
}

func (f *firstBeats) add(c change, created time.Time) {
	f.changes, f.created = append(f.changes, c), append(f.created, created)
}

// aged are the changes, with their ages.
func (f *firstBeats) aged() []change {
	for i := range f.changes {
		f.changes[i].age = f.last.Sub(f.created[i])
	}
	return f.changes
}

// stopWatch ends a watch. The client library's goroutine may be about to tell one change more than there is room for, and
// would wait for ever.
func stopWatch(w jetstream.KeyWatcher) {
	if w.Stop() != nil { // it has ended already
		return
	}
	for range w.Updates() {
	}
}

func (b kvBucket) tidy(ctx context.Context, age time.Duration) error {
	w, err := b.kv.Watch(ctx, workerPrefix+">", jetstream.MetaOnly())
	if err != nil {
		return err
	}
	var old []string
	for e := range w.Updates() {
		if e == nil {
			break
		}
		if time.Since(e.Created()) > age {
			old = append(old, e.Key())
		}
	}
	stopWatch(w)
	if len(old) == 0 {
		return nil
	}
	stream, err := b.js.Stream(ctx, "KV_"+b.kv.Bucket())
	if err != nil {
		return err
	}
	for _, key := range old {
		if err := stream.Purge(ctx, jetstream.WithPurgeSubject("$KV."+b.kv.Bucket()+"."+key)); err != nil {
			return err
		}
	}
	return nil
}

// parse reports whether e is of a key that workers write.
func (c *change) parse(e jetstream.KeyValueEntry) bool {
	if worker, ok := strings.CutPrefix(e.Key(), workerPrefix); ok {
		c.worker, c.gone = worker, e.Operation() != jetstream.KeyValuePut
		return true
	}
	number, ok := strings.CutPrefix(e.Key(), leasePrefix)
	if !ok {
		return false
	}
	n, err := strconv.Atoi(number)
	c.partition, c.value, c.revision = n, e.Value(), e.Revision()
	if e.Operation() != jetstream.KeyValuePut { // an operator's: the partition begins anew
		c.value = record{}.marshal()
	}
	return err == nil
}
