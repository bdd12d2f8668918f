// Package flowclient uploads messages over gRPC client-streaming calls so that an upload survives broken connections,
// restarts and proxies: the client half of the sessions of package flow ([flow.SessionOptions]).
//
// A [Sender] numbers the messages that it is given, keeps each one until the server has said that it is settled, and
// sends what is not settled again, in order, over as many streams as it takes. The server does not run again what it has
// settled. Nothing that Send took on is lost while the Sender lives; what is not known to be settled when it ends is
// what [Sender.Unsettled] yields.
//
// A program that may itself be killed in the middle gives its session a name, calls [Sender.Resume] when it starts, and
// goes on in its input where Resume says.
//
// Only the answer to a stream says what is settled, so the Sender half-closes a stream now and then and opens another.
// Each stream is a call of its own for interceptors, credentials and metrics. What concerns the connection stays with
// the grpc.ClientConn:
//
//   - Set grpc.WithConnectParams: by default gRPC waits up to 120 s before it connects again, and so does the Sender.
//   - Set keepalive parameters (and the server's EnforcementPolicy), or a connection that has gone silent is noticed by
//     AnswerTimeout alone.
//   - Timeouts of proxies, and of a service config's method, have to be longer than MaxStreamAge and the slowest answer.
//   - At most half of the buffer passes in a round trip and the time that the server takes to run it: on long lines
//     MaxBuffered has to be larger.
package flowclient
