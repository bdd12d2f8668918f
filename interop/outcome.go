package main

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	spb "google.golang.org/genproto/googleapis/rpc/status"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"example.com/flow"
)

// outcome is how a call ended, as its client saw it.
type outcome struct {
	Code     codes.Code        `json:"code"`
	Message  string            `json:"message"`
	Status   []byte            `json:"status"`   // google.rpc.Status; nil when the client got none
	Trailers map[string]string `json:"trailers"` // -bin ones in base64
	Stored   uint64            `json:"stored"`   // of the Receipt

	blind bool // the client shows neither details nor trailers
}

// parseOutcomes reads what a client of ours printed, a line for each call.
func parseOutcomes(stdout []byte) (all []outcome, err error) {
	for line := range strings.Lines(string(stdout)) {
		var o outcome
		if err := json.Unmarshal([]byte(line), &o); err != nil {
			return nil, fmt.Errorf("the client printed %q: %w", shorten(line), err)
		}
		all = append(all, o)
	}
	if len(all) == 0 {
		return nil, errors.New("the client printed nothing")
	}
	return all, nil
}

// expectation is what a client is to see. Fields that are zero are expected to be so.
type expectation struct {
	code      codes.Code
	message   string // a part of it
	reason    string // of the ErrorInfo, in flow's domain or its own; "" means there is none
	seq       string
	retry     bool
	committed string // the trailer; "" means there is none
}

const domain = "example.com/flow"

// differs says what of o is not as expected.
func (want expectation) differs(o outcome) error {
	var errs []error
	differ := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if o.Code != want.code {
		differ("code %v (%q), want %v", o.Code, shorten(o.Message), want.code)
	}
	if !strings.Contains(o.Message, want.message) {
		differ("message %q, want %q", shorten(o.Message), shorten(want.message))
	}
	if o.blind || len(errs) > 0 {
		return errors.Join(errs...)
	}
	var st spb.Status
	if err := proto.Unmarshal(o.Status, &st); err != nil {
		return fmt.Errorf("status: %w", err)
	}
	var info errdetails.ErrorInfo
	var retry errdetails.RetryInfo
	if hasInfo := find(&st, &info); hasInfo != (want.reason != "") || info.GetReason() != want.reason {
		differ("ErrorInfo %v, want reason %q", &info, want.reason)
	}
	if want.seq != "" && (info.GetDomain() != domain || info.GetMetadata()["seq"] != want.seq) {
		differ("ErrorInfo %v, want domain %q and seq %q", &info, domain, want.seq)
	}
	if has := find(&st, &retry); has != want.retry || has && retry.GetRetryDelay().AsDuration() <= 0 {
		differ("RetryInfo %v, want one: %v", &retry, want.retry)
	}
	if got := o.Trailers["flow-committed"]; got != want.committed {
		differ("flow-committed %q, want %q", got, want.committed)
	}
	if p, ok, err := o.progress(); err != nil || ok != (want.committed != "") || ok && fmt.Sprint(p.Committed()) != want.committed {
		differ("the trailers say %v, %v, %v", p, ok, err)
	}
	return errors.Join(errs...)
}

// progress is what the trailers say, flow-progress-bin included.
func (o outcome) progress() (flow.Progress, bool, error) {
	md := metadata.MD{}
	if v, ok := o.Trailers["flow-committed"]; ok {
		md.Set("flow-committed", v)
	}
	if v, ok := o.Trailers["flow-progress-bin"]; ok {
		b, err := base64.StdEncoding.DecodeString(v)
		if err != nil {
			return flow.Progress{}, false, err
		}
		md.Set("flow-progress-bin", string(b))
	}
	p, ok := flow.ProgressFromTrailer(md)
	return p, ok, nil
}

// find unmarshals the first detail of m's type.
func find(st *spb.Status, m proto.Message) bool {
	for _, d := range st.GetDetails() {
		if d.MessageIs(m) {
			return d.UnmarshalTo(m) == nil
		}
	}
	return false
}
