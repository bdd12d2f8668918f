package flow

import "encoding/binary"

// laneFilter says of which keys there is surely no lane: a Bloom filter by the key's end and one by its hash, with one bit a
// lane each. It is made under the lock that guards the lanes, and read without it. Most keys don't come to the second: while
// one key of 1,024 is slow, a hash for each message of the others would cost them 3 % of their throughput.
type laneFilter struct {
	empty        bool
	ends, hashes filterBits
}

type filterBits [8]uint64

// maxFilterLanes are so many that an eighth of the other keys' messages look as if they had one.
const maxFilterLanes = 64

// set marks nine bits of a number.
func (b *filterBits) set(n uint64) { b[n>>6%8] |= 1 << (n % 64) }

func (b *filterBits) has(n uint64) bool { return b[n>>6%8]&(1<<(n%64)) != 0 }

func (f *laneFilter) set(tb *laneTable) {
	if f.empty = tb.lanes == 0; f.empty {
		return
	}
	f.ends, f.hashes = filterBits{}, filterBits{}
	for _, l := range tb.buckets {
		for ; l != nil; l = l.chain {
			f.ends.set(endOf(l.name))
			f.hashes.set(l.hash >> 32)
		}
	}
}

// mayHave says whether there may be a lane called name, as far as its end tells.
func (f *laneFilter) mayHave(name string) bool { return !f.empty && f.ends.has(endOf(name)) }

// mayHaveHash says whether there may be a lane whose name has that hash.
func (f *laneFilter) mayHaveHash(hash uint64) bool { return f.hashes.has(hash >> 32) }

// endOf stirs the last eight bytes of name.
func endOf(name string) (n uint64) {
	if i := len(name) - 8; i >= 0 {
		n = binary.LittleEndian.Uint64([]byte(name[i:]))
	} else {
		for i := range len(name) {
			n = n<<8 | uint64(name[i])
		}
	}
	return n * 0x9E3779B97F4A7C15 >> 55
}
