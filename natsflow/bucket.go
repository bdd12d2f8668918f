package natsflow

import (
	"context"
	"errors"
	"strconv"
	"strings"

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
}

// change is news of the bucket.
type change struct {
	known     bool // all that was there has been told
	partition int  // of a record: -1 otherwise
	value     []byte
	revision  uint64
	worker    string // of a worker: "" otherwise
	gone      bool   // the worker has left
}

const (
	leasePrefix  = "lease."
	workerPrefix = "worker."
)

// kvBucket is a bucket in NATS.
type kvBucket struct{ kv jetstream.KeyValue }

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
		defer func() { _ = w.Stop() }()
		for {
			select {
			case e, ok := <-w.Updates():
				if !ok {
					return
				}
				c := change{partition: -1, known: e == nil}
				if e != nil && !c.parse(e) {
					continue
				}
				select {
				case changes <- c:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return changes, cancel, nil
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
