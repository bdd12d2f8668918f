// Package natsflow runs package flow's handlers on many machines, with NATS JetStream between those who receive and those
// who do the work. Gateways, which are gRPC servers, store uploads in a stream; workers run its messages, one at a time and
// in order for each key. Any process may be killed, stopped or cut off at any time: nothing that is stored is lost, and no
// key is reordered.
//
// A [Topic] is what both sides agree upon; [Ensure] makes what it needs in JetStream. A [Gateway] has what flow.NewBatch
// needs to store messages, and keeps the sessions of the clients, so that an upload goes on at any other gateway.
//
// # In the stream
//
// A message is stored under the subject Name.p, where p is its partition, a number below Topic.Partitions: the FNV-1a hash
// of its key, 64 bits, finished as MurmurHash3 does, modulo the number of partitions. Its data is what Codec.Marshal made.
// Its headers are
//
//   - Nats-Msg-Id: whose message it is: SessionID.String, a slash and the message's number in that session. JetStream
//     stores a message with an id that it has seen within Topic.Dedupe only once. The id of a message without a session
//     has one slash instead of two: what is before it was made up for its stream.
//   - Flow-Key: its key, escaped as a part of a URL's path is.
//
// # What it needs
//
// NATS server 2.14 or later on all nodes, with JetStream. For acknowledged to mean stored, use three replicas in three
// failure domains, and sync_interval: always. With the default, two minutes, what was acknowledged is lost when a majority
// of the machines loses power at once.
package natsflow
