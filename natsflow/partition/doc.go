// Package partition runs the messages of one partition of a durable log through flow, for whichever engine keeps the log.
// It knows nothing of NATS: an engine brings a [Source] that reads the partition in order, a [Tenure] that says whether the
// partition is still this process's, and a place to keep a record in.
//
// What it does is the same for every engine. A [Ledger] turns flow's progress, which counts the messages of one run, into
// positions of the log, and bounds what a crash may repeat. A [Progress] is the exact result, in at most 2 KiB. [Deaths]
// remember that holders died, and of which message. A [Runner] puts them together: it checks the tenure before each
// attempt, before OnFailure and before a dead letter; runs suspects alone in the process; and stores dead letters before it
// settles what they are about.
//
// A position is a number that grows along the partition, starting from 1, with gaps or without: the sequence of a stream,
// or an offset plus one.
package partition
