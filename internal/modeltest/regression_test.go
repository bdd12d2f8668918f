package modeltest_test

import (
	"time"

	"example.com/flow"
)

// regressions are scripts as the model test prints them, named after what they showed. The first ones broke the model,
// or deliberate bugs, and not the library: they stand where the contract leaves little room.
var regressions = map[string]script{
	"an EOF after Shutdown ends well if all has run": {
		Moves: []move{{Do: doSend}, {Do: doShutdown}, {Do: doEOF}, {Do: doEnd}},
	},
	"an EOF after a drain began ends well": {
		Options: flow.Options{Shutdown: flow.ShutdownOptions{DrainOnClose: true}},
		Moves:   []move{{Do: doSend}, {Do: doSend}, {Do: doShutdown}, {Do: doEOF}, {Do: doEnd}},
	},
	"a handler fails when its stream's context has ended": {
		OnFailure: true,
		Observer:  true,
		Moves: []move{
			{Do: doSend, Verdict: flow.SkipMessage, IgnoresContext: true}, {Do: doSend}, {Do: doCancel}, {Do: doEnd, How: endPanic},
		},
	},
	"a skipped message ends its stream while the slot goes to another key": {
		Options: flow.Options{
			Ordering:     flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO},
			Backpressure: flow.BackpressureOptions{Capacity: 1},
		},
		OnFailure: true,
		Moves: []move{
			{Do: doSend, Key: "a", Verdict: flow.SkipKey}, {Do: doSend}, {Do: doSend, Key: "a"}, {Do: doEnd, How: endFailed},
		},
	},
	"the grace period ends after Shutdown's context has": {
		Options: flow.Options{Shutdown: flow.ShutdownOptions{GracePeriod: 107 * time.Millisecond}},
		Moves:   []move{{Do: doSend, IgnoresContext: true}, {Do: doShutdown}, {Do: doCancelShutdown}, {Do: doAdvance, N: 2}},
	},
	"a retry comes due when its slot is taken": {
		Options: flow.Options{
			Ordering:     flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO},
			Backpressure: flow.BackpressureOptions{Capacity: 1, QueueCapacity: 1},
			Retry:        flow.RetryOptions{MaxAttempts: 2, Backoff: 100 * time.Millisecond},
		},
		Moves: []move{
			{Do: doSend}, {Do: doEnd, How: endFailed}, {Do: doSend, Key: "a"}, {Do: doAdvance, N: 1},
			{Do: doSend, Key: "b"}, {Do: doEnd}, {Do: doEnd},
		},
	},
	"a slot comes free as another stream's drop brings its next message's turn, and the end of its stream with that": {
		Options: flow.Options{
			Ordering:     flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO, Scope: flow.ScopeFlow, UnorderedEmptyKey: true},
			Backpressure: flow.BackpressureOptions{Capacity: 1},
		},
		OnFailure: true,
		Moves: []move{
			{Do: doSend, Verdict: flow.SkipMessage}, {Do: doOpen}, {Do: doSend, Stream: 1, Key: "a", Verdict: flow.SkipKey},
			{Do: doEnd}, {Do: doSend, Verdict: flow.SkipMessage}, {Do: doEnd, How: endFailed},
			{Do: doSend, Key: "a", Verdict: flow.SkipMessage}, {Do: doSend, Stream: 1, Key: "a"},
			{Do: doSend, Stream: 1, Verdict: flow.SkipMessage, IgnoresContext: true}, {Do: doEnd, How: endPanic},
		},
	},
	"an attempt that is over only after its stream takes none": {
		Options: flow.Options{
			Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO, UnorderedEmptyKey: true},
			Retry: flow.RetryOptions{
				MaxAttempts: 2, AttemptTimeout: 113 * time.Millisecond, Budget: flow.RetryBudget{MaxTokens: 2.5, TokenRatio: 2.25},
			},
		},
		Moves: []move{{Do: doSend}, {Do: doSend}, {Do: doSend}, {Do: doSend}},
	},
	"an attempt that is over only after its stream takes none, beside one that goes on": {
		Options: flow.Options{
			Ordering:     flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO, UnorderedEmptyKey: true},
			Backpressure: flow.BackpressureOptions{Policy: flow.BackpressureSoftAllow, Capacity: 1},
			Retry: flow.RetryOptions{
				MaxAttempts: 2, AttemptTimeout: 113 * time.Millisecond, Budget: flow.RetryBudget{MaxTokens: 2.5, TokenRatio: 2.25},
			},
		},
		Moves: []move{{Do: doSend, IgnoresContext: true}, {Do: doSend}, {Do: doSend}, {Do: doSend}, {Do: doSend}},
	},
	"an attempt that panics takes a token": {
		Options: flow.Options{Retry: flow.RetryOptions{MaxAttempts: 2, Budget: flow.RetryBudget{MaxTokens: 3, TokenRatio: 0.5}}},
		Moves: []move{
			{Do: doSend}, {Do: doEnd, How: endPanic}, {Do: doOpen}, {Do: doSend, Stream: 1}, {Do: doEnd, How: endFailed},
		},
	},
}
