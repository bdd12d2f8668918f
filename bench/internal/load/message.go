// Package load is the work that all contenders are given, and the check that they did it in order.
package load

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// Message is the unit of work: 128 bytes and a key.
type Message struct {
	Seq     uint64
	Key     string
	Payload []byte
	Busy    time.Duration // how long its handler takes, where that differs
	Slot    uint32        // of its key in the Checker
}

// Size is for limits that count bytes.
func (m *Message) Size() int { return len(m.Payload) }

// Keys is a distribution of keys over messages.
type Keys struct {
	Name string
	N    int // how many there are; 0: as many as messages
	pick func(*rand.Rand) func(i int) int
}

func uniform(name string, n int) Keys {
	return Keys{name, n, func(r *rand.Rand) func(int) int { return func(int) int { return r.IntN(n) } }}
}

// The distributions that the comparison shows.
var (
	OneKey   = uniform("1 key", 1)
	Keys64   = uniform("64", 64)
	Keys100  = uniform("100", 100)
	Keys1k   = uniform("1,000", 1000)
	Keys1Ki  = uniform("1,024", 1024)
	Keys100k = uniform("100k", 100_000)
	Zipf     = Keys{"Zipf", 10_000, func(r *rand.Rand) func(int) int {
		z := rand.NewZipf(r, 1.1, 1, 9999)
		return func(int) int { return int(z.Uint64()) }
	}}
	Unique = Keys{"unique", 0, func(*rand.Rand) func(int) int { return func(i int) int { return i } }}
)

var payloads = func() (p [1024][]byte) {
	r := rand.New(rand.NewPCG(3, 4))
	for i := range p {
		p[i] = make([]byte, 128)
		for j := range p[i] {
			p[i][j] = byte(r.Uint32())
		}
	}
	return p
}()

// Stream makes n messages of one stream, the same ones each time, and the number of slots that its Checker needs.
func Stream(k Keys, n int) (list []Message, slots int) {
	slots = k.N
	if slots == 0 {
		slots = n
	}
	names := make([]string, slots)
	for i := range names {
		names[i] = fmt.Sprintf("device-%04d", i)
	}
	list = make([]Message, n)
	pick := k.pick(rand.New(rand.NewPCG(7, 7)))
	for i := range list {
		j := pick(i)
		list[i] = Message{Seq: uint64(i + 1), Key: names[j], Payload: payloads[i&1023], Slot: uint32(j)}
	}
	return list, slots
}

// Source hands out the messages one by one, then nil.
func Source(list []Message) func() *Message {
	i := 0
	return func() *Message {
		if i == len(list) {
			return nil
		}
		i++
		return &list[i-1]
	}
}
