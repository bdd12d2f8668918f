// Package sessionsql keeps the sessions of package flow in a database, SQLite or PostgreSQL, where several processes may
// share them, and gives handlers an effect that happens exactly once: see [Once].
//
// A [Store] has two tables. One has a row for each session: its state, as flow saves it. The other has a row for each
// message whose effect was noted by Once and that is not committed yet. They are made by [Store.CreateTables] and grow
// until [Store.Forget].
//
// With PostgreSQL, have the server end what its client no longer will: set idle_in_transaction_session_timeout and the
// tcp_keepalives_* settings on it, to some tens of seconds. A host that dies within a transaction of Once (its power fails, or
// its network parts) closes no connection, and its transaction keeps the lock on the session's row until the server
// notices: for two hours, by the defaults of TCP. For so long the client that comes back waits in vain for its session at
// any other process.
//
// With SQLite, open the database with a busy_timeout, since one transaction writes at a time, and begin transactions that
// write with BEGIN IMMEDIATE or with a call of Once: one that has read before it writes fails if another has written in
// between.
package sessionsql
