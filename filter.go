package flow

import "encoding/binary"

// laneFilter says of which keys there is surely no lane: a Bloom filter by the last eight bytes of a key, with one bit a
// lane. While one key of 1,024 is slow, to look for a lane by a hash would cost each message of the others a tenth.
type laneFilter [8]uint64

// maxFilterLanes are so many that an eighth of the other keys, if they end in different ways, look as if they had one.
const maxFilterLanes = 64

func (f *laneFilter) set(tb *laneTable) {
	*f = laneFilter{}
	for _, l := range tb.buckets {
		for ; l != nil; l = l.chain {
			n := endOf(l.name)
			f[n>>6] |= 1 << (n & 63)
		}
	}
}

// mayHave says whether there may be a lane called name.
func (f *laneFilter) mayHave(name string) bool {
	n := endOf(name)
	return f[n>>6]&(1<<(n&63)) != 0
}

// endOf stirs the last eight bytes of name to a number of nine bits.
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
