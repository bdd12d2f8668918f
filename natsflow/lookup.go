package natsflow

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// lookup asks a stream's leader for one message: the Last of a subject, or the Next of a subject From a position on or of those
// stored Since then. The client library's own knows no Since, and fails at headers that it can't read: anybody may have
// published such.
type lookup struct {
	Last  string     `json:"last_by_subj,omitempty"`
	Next  string     `json:"next_by_subj,omitempty"`
	From  uint64     `json:"seq,omitempty"`
	Since *time.Time `json:"start_time,omitempty"`
	Bare  bool       `json:"no_hdr"` // without its headers; find sets it
}

// found is where a message is, and when it was stored. The zero value says that there is none.
type found struct {
	Position uint64    `json:"seq"`
	Stored   time.Time `json:"time"`
}

const lookupLimit = 5 * time.Second

// find waits for the answer until ctx ends, or for lookupLimit.
func (l lookup) find(ctx context.Context, js jetstream.JetStream, stream string) (found, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupLimit)
	defer cancel()
	l.Bare = true
	request, err := json.Marshal(l)
	if err != nil {
		return found{}, err
	}
	m, err := js.Conn().RequestWithContext(ctx, apiPrefix(js.Options())+"STREAM.MSG.GET."+stream, request)
	if err != nil {
		return found{}, fmt.Errorf("stream %q: %w", stream, err)
	}
	var answer struct {
		Error   *jetstream.APIError `json:"error"`
		Message found               `json:"message"`
	}
	if err := json.Unmarshal(m.Data, &answer); err != nil {
		return found{}, fmt.Errorf("stream %q: malformed answer: %w", stream, err)
	}
	switch {
	case answer.Error == nil:
		return answer.Message, nil
	case answer.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return found{}, nil
	}
	return found{}, fmt.Errorf("stream %q: %w", stream, answer.Error)
}
