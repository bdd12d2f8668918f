package natsflow

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// A pull that the server has forgotten, or never got since it was not ready, shows by its missing heartbeats: the
	// client's defaults would let a partition stand still for 30 seconds.
	pullHeartbeat = time.Second
	pullExpiry    = 5 * time.Second

	pullMax    = 500 // so many messages are asked for and not yet used
	pullStatus = 64  // room beside them, for what servers say of pulls

	consumerAbandoned = 30 * time.Second // after so long without a reader the server forgets the consumer
)

// pulls reads a subject of a stream in order, by a consumer that is in the server's memory and acknowledges nothing. It is
// over at the first thing that is wrong; who reads makes another then, behind the last message. It is used by one
// goroutine.
//
// It speaks the protocol itself (ADR-13 and ADR-37). The client library's ordered consumer makes a timer for each message
// and takes its reply subject apart more than once: a third of the processor time of a worker whose handlers do nothing.
type pulls struct {
	nc      *nats.Conn
	subject string // of the requests for messages
	sub     *nats.Subscription
	arrived chan *nats.Msg
	changed chan nats.Status // the connection is another one
	silence *time.Timer      // stopped, but while nothing has arrived

	asked  int       // so many messages are asked for and have not been returned
	number uint64    // the last message's among those of the consumer: they have no gaps
	idle   time.Time // when the first heartbeat came since the last message; zero if none did
}

var (
	errReconnected = errors.New("the connection was made anew")
	errSilence     = errors.New("the server sends no heartbeats")
	errPullGap     = errors.New("a message was lost on its way from the server")
	// errIdle says that no message has come for readerSilence: there may be none. It is the one error that ends nothing.
	errIdle = errors.New("no message has come for long")
)

// newPulls makes a consumer of a subject that begins with the position first, and asks for messages.
func newPulls(ctx context.Context, js jetstream.JetStream, stream, subject string, first uint64) (*pulls, error) {
	c, err := js.CreateConsumer(ctx, stream, jetstream.ConsumerConfig{
		FilterSubject:     subject,
		DeliverPolicy:     jetstream.DeliverByStartSequencePolicy,
		OptStartSeq:       first,
		AckPolicy:         jetstream.AckNonePolicy,
		MemoryStorage:     true,
		Replicas:          1,
		InactiveThreshold: consumerAbandoned,
	})
	if err != nil {
		return nil, err
	}
	p := &pulls{
		nc:      js.Conn(),
		subject: apiPrefix(js.Options()) + "CONSUMER.MSG.NEXT." + stream + "." + c.CachedInfo().Name,
		arrived: make(chan *nats.Msg, pullMax+pullStatus),
		silence: time.NewTimer(0),
	}
	p.silence.Stop()
	if p.sub, err = p.nc.ChanSubscribe(p.nc.NewInbox(), p.arrived); err != nil {
		return nil, err
	}
	p.changed = p.nc.StatusChanged(nats.CONNECTED)
	if err := p.ask(); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// apiPrefix is what the subjects of requests to JetStream begin with.
func apiPrefix(o jetstream.JetStreamOptions) string {
	switch {
	case o.APIPrefix != "":
		return strings.TrimSuffix(o.APIPrefix, ".") + "."
	case o.Domain != "":
		return "$JS." + o.Domain + ".API."
	default:
		return jetstream.DefaultAPIPrefix
	}
}

func (p *pulls) close() {
	_ = p.sub.Unsubscribe() // its error says that there is no subscription any more
	p.nc.RemoveStatusListener(p.changed)
}

// ask asks for as many messages as there is room for.
func (p *pulls) ask() error {
	request := fmt.Appendf(nil, `{"batch":%d,"expires":%d,"idle_heartbeat":%d}`, pullMax-p.asked, pullExpiry, pullHeartbeat)
	p.asked = pullMax
	return p.nc.PublishRequest(p.subject, p.sub.Subject, request)
}

// next blocks until there is a message, something is wrong, or none has come for readerSilence.
func (p *pulls) next(ctx context.Context) (*nats.Msg, place, error) {
	for {
		if p.asked < pullMax/2 {
			if err := p.ask(); err != nil {
				return nil, place{}, err
			}
		}
		m, err := p.receive(ctx)
		if err != nil {
			return nil, place{}, err
		}
		if m.Reply == "" { // it is no message of the stream
			if err := p.heed(m.Header); err != nil {
				return nil, place{}, err
			}
			continue
		}
		at, ok := placeOf(m.Reply)
		if !ok || at.number != p.number+1 {
			return nil, place{}, errPullGap
		}
		p.number++
		p.asked--
		p.idle = time.Time{}
		return m, at, nil
	}
}

// receive blocks until something arrives. A timer runs only while nothing has: most messages cost none.
func (p *pulls) receive(ctx context.Context) (*nats.Msg, error) {
	select {
	case m := <-p.arrived:
		return m, nil
	default:
	}
	p.silence.Reset(2 * pullHeartbeat)
	defer p.silence.Stop()
	select {
	case m := <-p.arrived:
		return m, nil
	case <-p.silence.C:
		return nil, errSilence
	case <-p.changed: // the pulls were those of the connection before
		return nil, errReconnected
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// heed takes what the server says of the pulls.
func (p *pulls) heed(h nats.Header) error {
	const (
		heartbeat = "100"
		expired   = "408"
	)
	switch status := h.Get("Status"); status {
	case heartbeat:
		now := time.Now()
		switch {
		case p.idle.IsZero():
			p.idle = now
		case now.Sub(p.idle) >= readerSilence:
			p.idle = now
			return errIdle
		}
		return nil
	case expired:
		left, err := strconv.Atoi(h.Get("Nats-Pending-Messages"))
		p.asked = max(0, p.asked-left)
		return err
	default: // the consumer is gone, its server is leaving, nobody listens
		return fmt.Errorf("the server ends a pull: %s %s", status, h.Get("Description"))
	}
}

// place is where a message stands.
type place struct {
	position uint64 // in the stream
	number   uint64 // among the messages of its consumer
	stored   int64  // when it was stored, in nanoseconds since 1970
}

// placeOf reads the place from a message's reply subject, which is one of
//
//	$JS.ACK.<stream>.<consumer>.<deliveries>.<position>.<number>.<time>.<pending>
//	$JS.ACK.<domain>.<account>.<stream>.<consumer>.<deliveries>.<position>.<number>.<time>.<pending>[.<token>]
//
// ok is false if it is neither. Unlike the client library's Metadata it allocates nothing.
func placeOf(reply string) (at place, ok bool) {
	rest, ok := strings.CutPrefix(reply, "$JS.ACK.")
	if !ok {
		return at, false
	}
	skip := 3 // tokens before the position
	switch dots := strings.Count(rest, "."); {
	case dots == 6:
	case dots >= 8:
		skip = 5
	default:
		return at, false
	}
	for range skip {
		_, rest, _ = strings.Cut(rest, ".")
	}
	var stored uint64
	for _, n := range [...]*uint64{&at.position, &at.number, &stored} {
		if *n, rest, ok = cutNumber(rest); !ok {
			return place{}, false
		}
	}
	at.stored = int64(stored)
	return at, true
}

// cutNumber reads the decimal number in front of the next dot.
func cutNumber(s string) (n uint64, rest string, ok bool) {
	const most = 19 // digits, so that it can't overflow
	for i := range min(len(s), most+1) {
		if s[i] == '.' {
			return n, s[i+1:], i > 0
		}
		digit := s[i] - '0'
		if digit > 9 || i == most {
			return 0, "", false
		}
		n = 10*n + uint64(digit)
	}
	return 0, "", false
}
