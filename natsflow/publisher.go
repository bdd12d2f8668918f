package natsflow

import (
	"errors"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"
)

// publisher asks the servers to store messages, and hears their answers: all of them come by one subscription, which lives
// as long as the connection. It is safe for concurrent use.
type publisher struct {
	nc       *nats.Conn
	patience time.Duration // how long it waits without hearing of any progress

	mu        sync.Mutex
	inbox     string // of all answers; "" until somebody asks
	exchanges map[string]*exchange
}

var (
	errDisconnected = errors.New("not connected to a NATS server")
	errNoProgress   = errors.New("the NATS servers do not answer")
)

// exchange is what is asked and answered of one list of messages.
type exchange struct {
	id      string
	inbox   string // of its answers: each goes to inbox, a dot and what the question has added
	take    func(tail string, m *nats.Msg)
	changed chan struct{} // has room for one: there was an answer
}

// begin begins an exchange. take gets each answer and what the question had added to the subject of answers, under the
// publisher's lock. The exchange must be ended.
func (p *publisher) begin(take func(tail string, m *nats.Msg)) (*exchange, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.inbox == "" {
		inbox := p.nc.NewInbox()
		if _, err := p.nc.Subscribe(inbox+".>", p.answer); err != nil {
			return nil, err
		}
		p.inbox, p.exchanges = inbox, map[string]*exchange{}
	}
	e := &exchange{id: nuid.Next(), take: take, changed: make(chan struct{}, 1)}
	e.inbox = p.inbox + "." + e.id
	p.exchanges[e.id] = e
	return e, nil
}

func (p *publisher) end(e *exchange) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.exchanges, e.id)
}

// answer takes an answer, on the subscription's goroutine.
func (p *publisher) answer(m *nats.Msg) {
	p.mu.Lock()
	defer p.mu.Unlock()
	id, tail, _ := strings.Cut(m.Subject[min(len(p.inbox)+1, len(m.Subject)):], ".")
	e := p.exchanges[id]
	if e == nil {
		return // it has ended without waiting for this
	}
	e.take(tail, m)
	select {
	case e.changed <- struct{}{}:
	default:
	}
}

// ask publishes m, whose answers go to the subject that tail is added to. Without a connection it fails: the client would
// keep the message and send it when there is one, at a time when nobody remembers that it was sent before.
func (p *publisher) ask(e *exchange, tail string, m *nats.Msg) error {
	if !p.nc.IsConnected() {
		return errDisconnected
	}
	m.Reply = e.inbox + "." + tail
	return p.nc.PublishMsg(m)
}

// nobodyAnswers reports whether m says that nobody listens to what was published.
func nobodyAnswers(m *nats.Msg) bool {
	const noResponders = "503"
	return len(m.Data) == 0 && m.Header.Get("Status") == noResponders
}

// numbered is the decimal number at the end of an answer's subject; -1 if there is none.
func numbered(tail string) int {
	n, err := strconv.Atoi(tail)
	if err != nil {
		return -1
	}
	return n
}
