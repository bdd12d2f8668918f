package natsflow

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	defaultPartitions = 64
	defaultReplicas   = 3
	defaultDedupe     = 10 * time.Minute

	maxPartitions = 4096
	maxReplicas   = 5
	maxName       = 128 // bytes; the server takes 255, of which suffixes and the buckets' prefix take some

	// sessionIdle is how long the sessions bucket keeps a session that nobody saves. A client that comes back later is told
	// that its session is lost.
	sessionIdle = 30 * 24 * time.Hour
)

// Topic is what gateways and workers agree upon. It is given to all of them, the same.
type Topic struct {
	// Name is that of the stream; the buckets Name_lease and Name_sessions and the stream Name_dead are named after it.
	// Letters, digits, underscores and hyphens, at most 128.
	Name string
	// Partitions is how many parts the keys are spread over: the bound on workers, not on parallelism, since within a
	// partition keys run side by side. It can't be changed once the stream is there: keys would move between partitions and
	// lose their order. Make a new Topic and drain the old one. 0 means 64.
	Partitions int
	// Replicas is how many servers keep each message. 0 means 3. 1 is for tests: an acknowledged message may be lost with
	// its only server.
	Replicas int
	// Dedupe is how long the stream knows the ids of its messages: for so long after a cut a message that is sent again is
	// not stored again. The servers keep the ids of all messages of that time in memory, and the messages on disk, since a
	// server that is started learns the ids from them. 0 means 10 minutes.
	Dedupe time.Duration
	// MaxBytes bounds the stream, on each server. At the bound gateways refuse messages with ResourceExhausted; nothing is
	// dropped. Without MaxAge, what is settled counts until it is as old as Dedupe. 0 means no bound.
	MaxBytes int64
	// MaxAge is how long messages are kept, settled or not: what nobody has settled by then is lost. 0 means that settled
	// messages are purged as soon as they are as old as Dedupe, and others are kept for ever.
	MaxAge time.Duration
}

var topicName = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

// withDefaults returns t with its defaults in place of zeros, or what is wrong with it.
func (t Topic) withDefaults() (Topic, error) {
	if t.Partitions == 0 {
		t.Partitions = defaultPartitions
	}
	if t.Replicas == 0 {
		t.Replicas = defaultReplicas
	}
	if t.Dedupe == 0 {
		t.Dedupe = defaultDedupe
	}
	switch {
	case !topicName.MatchString(t.Name) || len(t.Name) > maxName:
		return t, invalid("Topic.Name", strconv.Quote(t.Name), fmt.Sprintf("must be 1 to %d letters, digits, underscores and hyphens", maxName))
	case t.Partitions < 0 || t.Partitions > maxPartitions:
		return t, invalid("Topic.Partitions", t.Partitions, fmt.Sprintf("must be 1 to %d, or 0 for %d", maxPartitions, defaultPartitions))
	case t.Replicas != 1 && t.Replicas != 3 && t.Replicas != maxReplicas:
		return t, invalid("Topic.Replicas", t.Replicas, fmt.Sprintf("must be 1, 3 or 5, or 0 for %d", defaultReplicas))
	case t.Dedupe < 100*time.Millisecond:
		return t, invalid("Topic.Dedupe", t.Dedupe, fmt.Sprintf("must be at least 100ms, or 0 for %v", defaultDedupe))
	case t.MaxBytes < 0:
		return t, invalid("Topic.MaxBytes", t.MaxBytes, "must not be negative")
	case t.MaxAge < 0 || t.MaxAge > 0 && t.MaxAge < t.Dedupe:
		return t, invalid("Topic.MaxAge", t.MaxAge, fmt.Sprintf("must be 0 or at least Topic.Dedupe, which is %v", t.Dedupe))
	}
	return t, nil
}

// invalid says which field has which value, and the rule that it breaks.
func invalid(field string, value any, rule string) error {
	return fmt.Errorf("natsflow: %s is %v: it %s", field, value, rule)
}

// subject is that of a partition's messages.
func (t Topic) subject(partition int) string { return t.Name + "." + strconv.Itoa(partition) }

// deadStream is the stream of dead letters.
func (t Topic) deadStream() string { return t.Name + "_dead" }

// deadSubject is that of a partition's dead letters.
func (t Topic) deadSubject(partition int) string {
	return t.deadStream() + "." + strconv.Itoa(partition)
}

// leaseBucket is the bucket of the workers' leases.
func (t Topic) leaseBucket() string { return t.Name + "_lease" }

// sessionsBucket is the bucket of the clients' sessions.
func (t Topic) sessionsBucket() string { return t.Name + "_sessions" }

// The metadata of a topic's stream: how keys are spread over partitions, and the format of its messages.
const (
	metaFormat     = "natsflow.format"
	metaHash       = "natsflow.hash"
	metaPartitions = "natsflow.partitions"

	format = "1"
)

// stream is the configuration of the stream of messages.
func (t Topic) stream() jetstream.StreamConfig {
	c := t.log(t.Name)
	c.MaxAge = t.MaxAge
	if t.MaxBytes > 0 {
		c.MaxBytes = t.MaxBytes
	}
	c.AllowBatchPublish = true
	c.Metadata = map[string]string{metaFormat: format, metaHash: hashName, metaPartitions: strconv.Itoa(t.Partitions)}
	return c
}

// log is the configuration of a stream with a subject for each partition, which refuses what is beyond its bounds: a
// stream that discards its oldest messages would drop what nobody has read.
func (t Topic) log(name string) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:       name,
		Subjects:   []string{name + ".*"},
		Retention:  jetstream.LimitsPolicy,
		Discard:    jetstream.DiscardNew,
		Storage:    jetstream.FileStorage,
		Replicas:   t.Replicas,
		Duplicates: t.Dedupe,
		MaxBytes:   -1,
	}
}

// bucket is the configuration of the stream behind a key-value bucket. It differs from what the client library would make
// of it in one thing: reads are the leader's (AllowDirect is false). A follower may be behind, and whoever reads a value back
// to learn whether his own write was done would be told that it wasn't.
func (t Topic) bucket(name string, idle time.Duration) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:              "KV_" + name,
		Subjects:          []string{"$KV." + name + ".>"},
		Retention:         jetstream.LimitsPolicy,
		Discard:           jetstream.DiscardNew,
		Storage:           jetstream.FileStorage,
		Replicas:          t.Replicas,
		MaxMsgsPerSubject: 1,
		MaxBytes:          -1,
		MaxAge:            idle,
		Duplicates:        2 * time.Minute,
		AllowRollup:       true,
		DenyDelete:        true,
	}
}

// streams are all that the topic needs, in the order in which they are made: who finds the first finds a topic.
func (t Topic) streams() []jetstream.StreamConfig {
	return []jetstream.StreamConfig{
		t.stream(),
		t.log(t.deadStream()),
		t.bucket(t.leaseBucket(), 0),
		t.bucket(t.sessionsBucket(), sessionIdle),
	}
}

// Ensure creates what t needs and is missing: the streams Name and Name_dead, and the buckets Name_lease and
// Name_sessions. What is there already must be as t says, or Ensure returns an error and changes nothing of it. It may be
// called by any number of processes at once. While the servers elect their leaders it tries again, for ten seconds at most.
func Ensure(ctx context.Context, js jetstream.JetStream, t Topic) error {
	t, err := t.withDefaults()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, ensureLimit)
	defer cancel()
	for _, c := range t.streams() {
		if err := t.ensure(ctx, js, c); err != nil {
			return err
		}
	}
	return nil
}

const (
	ensureLimit   = 10 * time.Second
	ensureAttempt = 3 * time.Second
	ensurePause   = 100 * time.Millisecond
)

// ensure creates a stream, or compares it with the one that is there, until that is done or can't be.
func (t Topic) ensure(ctx context.Context, js jetstream.JetStream, want jetstream.StreamConfig) error {
	for {
		err := func() error {
			ctx, cancel := context.WithTimeout(ctx, ensureAttempt)
			defer cancel()
			have, err := streamConfig(ctx, js, want.Name)
			if errors.Is(err, jetstream.ErrStreamNotFound) {
				var s jetstream.Stream
				if s, err = js.CreateStream(ctx, want); err == nil {
					have = s.CachedInfo().Config
				}
			}
			if err != nil {
				return fmt.Errorf("natsflow: stream %q: %w", want.Name, err)
			}
			return t.compare(have, want)
		}()
		if err == nil || !isTransient(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(ensurePause):
		}
	}
}

// verify compares the stream of messages with what t says. Gateways and workers ask it before they begin: with another
// number of partitions they would break the order of keys.
func (t Topic) verify(ctx context.Context, js jetstream.JetStream) error {
	have, err := streamConfig(ctx, js, t.Name)
	if err != nil {
		return fmt.Errorf("natsflow: stream %q: %w", t.Name, err)
	}
	return t.compare(have, t.stream())
}

func streamConfig(ctx context.Context, js jetstream.JetStream, name string) (jetstream.StreamConfig, error) {
	s, err := js.Stream(ctx, name)
	if err != nil {
		return jetstream.StreamConfig{}, err
	}
	return s.CachedInfo().Config, nil
}

// isTransient reports whether a request to JetStream may succeed when it is made again: somebody else was quicker, or
// there is no leader at the moment.
func isTransient(err error) bool {
	var api *jetstream.APIError
	switch {
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		return false
	case errors.Is(err, jetstream.ErrStreamNameAlreadyInUse), errors.Is(err, context.DeadlineExceeded),
		errors.Is(err, nats.ErrTimeout), errors.Is(err, nats.ErrNoResponders), errors.Is(err, nats.ErrNoServers),
		errors.Is(err, nats.ErrDisconnected), errors.Is(err, nats.ErrReconnectBufExceeded): // without a connection
		return true
	}
	return errors.As(err, &api) && api.Code == 503
}

// compare returns an error that names the first difference between a stream and what t wants it to be.
func (t Topic) compare(have, want jetstream.StreamConfig) error {
	differ := func(field string, wanted, found any, hint string) error {
		return fmt.Errorf("natsflow: %s is %v, but stream %q has %v: %s", field, wanted, want.Name, found, hint)
	}
	const (
		edit     = "make them the same"
		foreign  = "it is not a topic's stream; use another name"
		newTopic = "it can't be changed; make a Topic with another name and drain this one"
	)
	for _, key := range slices.Sorted(maps.Keys(want.Metadata)) {
		switch found, ok := have.Metadata[key]; {
		case !ok:
			return differ("metadata "+key, want.Metadata[key], "none", foreign)
		case found != want.Metadata[key] && key == metaPartitions:
			return differ("Topic.Partitions", want.Metadata[key], found, newTopic)
		case found != want.Metadata[key]:
			return differ("metadata "+key, want.Metadata[key], found, newTopic)
		}
	}
	switch {
	case !slices.Equal(have.Subjects, want.Subjects):
		return differ("the list of subjects", want.Subjects, have.Subjects, foreign)
	case have.Retention != want.Retention:
		return differ("retention", want.Retention, have.Retention, foreign)
	case have.Discard != want.Discard:
		return differ("discard", want.Discard, have.Discard, "it would drop messages that nobody has read")
	case have.Storage != want.Storage:
		return differ("storage", want.Storage, have.Storage, foreign)
	case want.AllowBatchPublish && !have.AllowBatchPublish:
		return differ("allow_batched", true, false, "the servers must be of version 2.14 or later")
	case have.AllowDirect != want.AllowDirect && want.MaxMsgsPerSubject == 1:
		return differ("allow_direct", want.AllowDirect, have.AllowDirect, edit)
	case have.Replicas != want.Replicas:
		return differ("Topic.Replicas", want.Replicas, have.Replicas, edit)
	case have.Duplicates != want.Duplicates:
		return differ("Topic.Dedupe", want.Duplicates, have.Duplicates, edit)
	case have.MaxBytes != want.MaxBytes:
		return differ("Topic.MaxBytes", want.MaxBytes, have.MaxBytes, edit)
	case have.MaxAge != want.MaxAge:
		return differ("Topic.MaxAge", want.MaxAge, have.MaxAge, edit)
	}
	return nil
}
