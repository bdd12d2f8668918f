package main

import (
	"encoding/base64"
	"strings"
	"testing"

	spb "google.golang.org/genproto/googleapis/rpc/status"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"example.com/flow"
)

// packed is a marshalled status with these details.
func packed(t *testing.T, details ...proto.Message) []byte {
	t.Helper()
	st := &spb.Status{Code: int32(codes.ResourceExhausted), Message: "refused"}
	for _, d := range details {
		a, err := anypb.New(d)
		if err != nil {
			t.Fatal(err)
		}
		st.Details = append(st.Details, a)
	}
	b, err := proto.Marshal(st)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestEachDifferenceIsFound(t *testing.T) {
	info := &errdetails.ErrorInfo{Reason: "BACKPRESSURE", Domain: domain, Metadata: map[string]string{"seq": "2"}}
	retry := &errdetails.RetryInfo{RetryDelay: durationpb.New(1)}
	want := expectation{code: codes.ResourceExhausted, message: "refused", reason: "BACKPRESSURE", seq: "2", retry: true, committed: "1"}
	progress, err := flow.Summary{Received: 3, Committed: 1, Unsettled: []uint64{2}}.Progress().MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	right := func() outcome {
		return outcome{
			Code: codes.ResourceExhausted, Message: "refused: why", Status: packed(t, info, retry),
			Trailers: map[string]string{
				"flow-committed": "1", "flow-progress-bin": base64.StdEncoding.EncodeToString(progress),
			},
		}
	}
	if err := want.differs(right()); err != nil {
		t.Fatalf("what is as expected differs: %v", err)
	}
	for name, c := range map[string]struct {
		change func(*outcome)
		says   string
	}{
		"code":     {func(o *outcome) { o.Code = codes.Internal }, "code Internal"},
		"message":  {func(o *outcome) { o.Message = "no" }, "message"},
		"details":  {func(o *outcome) { o.Status = nil }, "ErrorInfo"},
		"reason":   {func(o *outcome) { o.Status = packed(t, &errdetails.ErrorInfo{Reason: "ORDERING"}, retry) }, "ErrorInfo"},
		"domain":   {func(o *outcome) { o.Status = packed(t, &errdetails.ErrorInfo{Reason: "BACKPRESSURE"}, retry) }, "domain"},
		"no retry": {func(o *outcome) { o.Status = packed(t, info) }, "RetryInfo"},
		"no delay": {func(o *outcome) { o.Status = packed(t, info, &errdetails.RetryInfo{}) }, "RetryInfo"},
		"garbage":  {func(o *outcome) { o.Status = []byte{7} }, "status"},
		"trailer":  {func(o *outcome) { o.Trailers["flow-committed"] = "2" }, "flow-committed"},
		"none":     {func(o *outcome) { o.Trailers = nil }, "flow-committed"},
		"progress": {func(o *outcome) { o.Trailers["flow-progress-bin"] = "AgIB" }, "trailers"},
		"base64":   {func(o *outcome) { o.Trailers["flow-progress-bin"] = "!" }, "trailers"},
	} {
		o := right()
		c.change(&o)
		if err := want.differs(o); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want something about %q", name, err, c.says)
		}
	}
	if err := (expectation{}).differs(outcome{Status: packed(t, info)}); err == nil {
		t.Error("a detail that is not expected passes")
	}
	if err := (expectation{}).differs(outcome{Trailers: map[string]string{"flow-committed": "0"}}); err == nil {
		t.Error("a trailer that is not expected passes")
	}
	if err := want.differs(outcome{Code: want.code, Message: "refused", blind: true}); err != nil {
		t.Errorf("a blind client is to show what it can't: %v", err)
	}
}

func TestResumedCallsAddUp(t *testing.T) {
	cut := func(committed string) outcome {
		return outcome{
			Code: codes.Unavailable, Message: "the flow is shutting down",
			Status: packed(t, &errdetails.ErrorInfo{Reason: "SHUTDOWN", Domain: domain},
				&errdetails.RetryInfo{RetryDelay: durationpb.New(1)}),
			Trailers: map[string]string{"flow-committed": committed},
		}
	}
	done := func(committed string) outcome {
		return outcome{Trailers: map[string]string{"flow-committed": committed}}
	}
	for name, c := range map[string]struct {
		calls []outcome
		ok    bool
	}{
		"resumed":             {[]outcome{cut("150"), done("250")}, true},
		"refused in between":  {[]outcome{cut("150"), cut("0"), done("250")}, true},
		"lost":                {[]outcome{cut("150"), done("249")}, false},
		"sent again":          {[]outcome{cut("150"), done("400")}, false},
		"cut too early":       {[]outcome{cut("99"), done("301")}, false},
		"not cut":             {[]outcome{done("400")}, false},
		"cut at the end":      {[]outcome{cut("400"), done("0")}, false},
		"no trailer":          {[]outcome{{Code: codes.Unavailable}, done("400")}, false},
		"another end":         {[]outcome{done("150"), done("250")}, false},
		"never done":          {[]outcome{cut("150"), cut("0")}, false},
		"stored in a refusal": {[]outcome{cut("150"), cut("50"), done("200")}, false},
	} {
		if err := resumed(c.calls, 400); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
