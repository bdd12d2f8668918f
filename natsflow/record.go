package natsflow

import (
	"encoding/json"
	"fmt"

	"example.com/flow/natsflow/partition"
)

// record is what the lease bucket says of a partition: who holds it, and how far it is. Both in one value, so that a commit
// of one who does not hold it any more is refused with his renewal.
type record struct {
	Holder   string           `json:"holder,omitempty"`   // the worker; "" while the partition is free
	Claim    string           `json:"claim,omitempty"`    // the hold, also after its release
	Write    uint64           `json:"write,omitempty"`    // counts the writes of the hold
	Epoch    uint64           `json:"epoch,omitempty"`    // the revision of the claim; 0 in the claim itself
	Progress []byte           `json:"progress,omitempty"` // partition.Progress
	Deaths   partition.Deaths `json:"deaths,omitzero"`
	Stopped  string           `json:"stopped,omitempty"` // why the holder runs no more of it
	Missing  uint64           `json:"missing,omitempty"` // how many messages the stream has lost before they were settled, as far as was noticed
}

// parseRecord reads a value of the bucket.
func parseRecord(value []byte) (r record, err error) {
	if err := json.Unmarshal(value, &r); err != nil {
		return r, fmt.Errorf("natsflow: malformed record in the lease bucket: %w", err)
	}
	return r, nil
}

func (r record) marshal() []byte {
	b, err := json.Marshal(r)
	if err != nil {
		panic("bug: a record can't be marshalled: " + err.Error())
	}
	return b
}

// progress is what the record calls settled. A record that can't be read settles nothing, which is safe.
func (r record) progress() (p partition.Progress, err error) {
	if len(r.Progress) == 0 {
		return p, nil
	}
	err = p.UnmarshalBinary(r.Progress)
	return p, err
}

// frontierIn is up to where a value of the bucket calls its partition settled. Without a value, which is nil, nothing is.
func frontierIn(value []byte) (uint64, error) {
	if value == nil {
		return 0, nil
	}
	r, err := parseRecord(value)
	if err != nil {
		return 0, err
	}
	p, err := r.progress()
	return p.Frontier, err
}
