package natsflow

import (
	"fmt"
	"time"

	"example.com/flow"
	"example.com/flow/natsflow/partition"
)

// PoisonError is the failure of a message that is not run any more, since workers died while it ran alone in them.
type PoisonError = partition.PoisonError

// DecodeError is the failure of a message that Codec.Unmarshal could not read. The Failure's Value is the bytes.
type DecodeError = partition.DecodeError

const (
	defaultLease      = 15 * time.Second
	defaultCommit     = 250 * time.Millisecond
	defaultQuarantine = 2
	defaultPoison     = 2

	minLease = 200 * time.Millisecond
	minTimes = 4 // a Lease takes at least so many Commits
)

// WorkerOptions configure a Worker. The zero value runs one message of a key at a time, without retry, and stops a
// partition at its first failure.
type WorkerOptions struct {
	// Flow are the options of the one Flow that runs all partitions of the worker: Backpressure.Capacity bounds what runs in
	// the process. Ordering.Mode is OrderingKeyedFIFO, for which its zero value stands here. MaxPending is for each
	// partition, and bounds what a crash repeats of it. OnFailure may answer FailStream, which stops the partition, or
	// SkipMessage; SkipKey stops the partition too. A message that can't be decoded comes to it with its bytes and a
	// *DecodeError, and one that workers died of with a *PoisonError. Shutdown.GracePeriod bounds how long handlers may go on
	// when the worker ends. Options that refuse messages, and IdleTimeout and Sessions, can't be used.
	Flow flow.Options
	// DeadLetter has the worker store what OnFailure skips in the stream Name_dead, before it is settled; without an
	// OnFailure that is poison.
	DeadLetter bool
	// Lease is how long a dead worker's partitions wait for the next holder. A worker that can't reach the servers stops
	// after three quarters of it. 0 means 15 seconds.
	Lease time.Duration
	// Commit is how often progress is written, where there is any: what was settled since is what a crash repeats. 0 means
	// 250 milliseconds.
	Commit time.Duration
	// Quarantine is after how many deaths of its holders the messages of a partition that may have been under way run one
	// at a time, alone in their process, so that it shows which of them kills. 0 means 2.
	Quarantine int
	// Poison is after how many deaths while it ran alone a message runs no more: its failure is a *PoisonError. 0 means 2.
	Poison int
	// Observer is told what happens to partitions, one event after the other, in the order in which they happened. No
	// partition waits for it: what it has not been told yet is kept in memory, 8,192 events at most, and of claims, their
	// ends, stops and deaths twice as many. What happens beyond that is dropped, and PartitionEvent.Dropped of the next event
	// counts it. Run waits at its end until it was told everything, but for one Lease at most, and says so in its error. If
	// it panics, it is told of the next event all the same, and Run returns the panic as its error when it ends. nil means
	// nobody.
	Observer func(PartitionEvent)
}

// withDefaults returns o with its defaults in place of zeros, or what is wrong with it.
func (o WorkerOptions) withDefaults() (WorkerOptions, error) {
	if o.Lease == 0 {
		o.Lease = defaultLease
	}
	if o.Commit == 0 {
		o.Commit = min(defaultCommit, o.Lease/minTimes)
	}
	if o.Quarantine == 0 {
		o.Quarantine = defaultQuarantine
	}
	if o.Poison == 0 {
		o.Poison = defaultPoison
	}
	switch {
	case o.Lease < minLease:
		return o, invalid("WorkerOptions.Lease", o.Lease, fmt.Sprintf("must be at least %v, or 0 for %v", minLease, defaultLease))
	case o.Commit < 0 || o.Commit > o.Lease/minTimes:
		return o, invalid("WorkerOptions.Commit", o.Commit,
			fmt.Sprintf("must be from 0, for %v, to a quarter of Lease, which is %v", defaultCommit, o.Lease))
	case o.Quarantine < 0:
		return o, invalid("WorkerOptions.Quarantine", o.Quarantine, fmt.Sprintf("must be positive, or 0 for %d", defaultQuarantine))
	case o.Poison < 0:
		return o, invalid("WorkerOptions.Poison", o.Poison, fmt.Sprintf("must be positive, or 0 for %d", defaultPoison))
	}
	return o, nil
}
