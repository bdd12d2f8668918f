// Package effects is a store that the handlers of tests and of the soak write to, from any number of processes, and the
// judge of what they have written.
package effects

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

// Effect is one effect of a handler.
type Effect struct {
	Value  string // key/n
	Seq    uint64 // of the message: what a guarded effect compares, by key
	Epoch  uint64
	Worker string

	At      time.Time // when the store was told
	Guarded bool      // a guarded effect would have happened: Seq was higher than that of all before of its key
}

// Key is what stands before the slash of a value.
func Key(value string) string {
	key, _, _ := strings.Cut(value, "/")
	return key
}

// Store is a guarded store. It is safe for concurrent use.
type Store struct {
	mu   sync.Mutex
	all  []Effect
	done map[string]bool
	last map[string]uint64
}

// Apply notes an effect.
func (s *Store) Apply(e Effect) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == nil {
		s.last, s.done = map[string]uint64{}, map[string]bool{}
	}
	e.At = time.Now()
	if key := Key(e.Value); e.Seq > s.last[key] {
		e.Guarded, s.last[key] = true, e.Seq
	}
	s.done[e.Value] = true
	s.all = append(s.all, e)
}

// Done is how many messages have had their effect at least once.
func (s *Store) Done() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.done)
}

// All is all effects, in their order.
func (s *Store) All() []Effect {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.all)
}

// String is the effects, for those who look for what went wrong.
func (s *Store) String() string {
	var b strings.Builder
	for _, e := range s.All() {
		fmt.Fprintf(&b, "%s(%s seq %d epoch %d) ", e.Value, e.Worker, e.Seq, e.Epoch)
	}
	return b.String()
}

// Judgement is how effects differ from each message's once and in order.
type Judgement struct {
	Lost      []string // had none
	Repeated  int      // effects beyond the first of a message
	Reordered []string // the first came after that of a later message of the key
	Stale     int      // came from a worker of an older epoch than one before of the key
	WrongEnd  []string // keys whose last effect is not that of their last message
	Guarded   []string // what of all this is true of the guarded effects: there must be nothing
}

func (j Judgement) String() string {
	short := func(all []string) string {
		if len(all) > 5 {
			return fmt.Sprintf("%d: %s …", len(all), strings.Join(all[:5], " "))
		}
		return fmt.Sprintf("%d %v", len(all), all)
	}
	return fmt.Sprintf("lost %s, repeated %d, reordered %s, stale %d, wrong end %s; guarded: %s",
		short(j.Lost), j.Repeated, short(j.Reordered), j.Stale, short(j.WrongEnd), short(j.Guarded))
}

// Judge compares the effects with the values that were stored, which are in the order of their keys.
func (s *Store) Judge(values []string) (j Judgement) {
	number, last := map[string]int{}, map[string]int{} // of a value among those of its key; of the key's last
	for _, v := range values {
		key := Key(v)
		last[key]++
		number[v] = last[key]
	}
	seen := map[string]bool{}
	highest, guarded, end := map[string]int{}, map[string]int{}, map[string]int{}
	epoch := map[string]uint64{}
	for _, e := range s.All() {
		key, n := Key(e.Value), number[e.Value]
		if seen[e.Value] {
			j.Repeated++
		} else if n != highest[key]+1 {
			j.Reordered = append(j.Reordered, e.Value)
		}
		seen[e.Value] = true
		highest[key] = max(highest[key], n)
		end[key] = n
		if e.Epoch < epoch[key] {
			j.Stale++
		}
		epoch[key] = max(epoch[key], e.Epoch)
		if e.Guarded {
			if n != guarded[key]+1 {
				j.Guarded = append(j.Guarded, fmt.Sprintf("%s after %d", e.Value, guarded[key]))
			}
			guarded[key] = n
		}
	}
	for _, v := range values {
		if !seen[v] {
			j.Lost = append(j.Lost, v)
		}
	}
	for key, n := range last {
		if end[key] != n {
			j.WrongEnd = append(j.WrongEnd, key)
		}
		if guarded[key] != n {
			j.Guarded = append(j.Guarded, fmt.Sprintf("%s ends with %d of %d", key, guarded[key], n))
		}
	}
	return j
}

// Serve lets other processes write to s, until stop is called. It returns the address.
func (s *Store) Serve() (address string, stop func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go s.serve(c)
		}
	}()
	return l.Addr().String(), func() { _ = l.Close() }, nil
}

func (s *Store) serve(c net.Conn) {
	defer func() { _ = c.Close() }()
	for d := json.NewDecoder(c); ; {
		var e Effect
		if d.Decode(&e) != nil {
			return
		}
		s.Apply(e)
		if _, err := fmt.Fprintln(c, "done"); err != nil {
			return
		}
	}
}

// Client is a Store in another process. It is safe for concurrent use.
type Client struct {
	mu      sync.Mutex
	conn    net.Conn
	answers *bufio.Reader
}

// Dial connects to a Store.
func Dial(address string) (*Client, error) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	return &Client{conn: c, answers: bufio.NewReader(c)}, nil
}

// Apply returns when the store has noted the effect.
func (c *Client) Apply(e Effect) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := json.NewEncoder(c.conn).Encode(e); err != nil {
		return err
	}
	_, err := c.answers.ReadString('\n')
	return err
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }
