package main

const usage = `ingest uploads records to a server over gRPC, which runs them through flow into SQLite.
In the end it compares the stored state with a sequential replay of the input.

  ingest [flags]                 server and client in one process
  ingest -serve ADDR [flags]     the server alone
  ingest -connect ADDR [flags]   the client alone

Input (client)
  -devices N       devices of the generated fleet, device-1 to device-N (100)
  -records N       records that they send (20000; 3000 with -policy hard)
  -in FILE         read records from FILE instead; - is standard input
  -key KEY         where a line of -in has its key: a number is a column of text, counted from 1;
                   any other word is a field of NDJSON. Blank lines are no records
  -bad ACTION      what to do with a bad line: stop there, or skip it (stop)
  -streams N       streams to upload over, each with its own keys (1)

How the server runs them
  -mode MODE       fifo: one record of a stream at a time; keyed: one of a key at a time;
                   none: no order, so that the check will hardly ever say yes (keyed)
  -batch N         records that a call of the handler stores in one transaction, at most; 1: one by one (16)
  -capacity N      calls of the handler at a time; 0 is no limit (8, or 64 without batches)
  -policy POLICY   what happens to a record beyond that: it waits (queue), it is refused and the client
                   slows down and sends it again (hard), it runs all the same (soft), or it runs and is
                   counted (signal) (queue). All but queue, and no limit, are for -batch 1, and imply it
  -db FILE         database to store in; it may hold earlier uploads (a temporary one)
  -grace D         how long a shutdown lets accepted records go on (10s)

Both
  -tls FILE        use TLS: PEM file with the server's certificate and its key; for the client alone, with
                   the certificates that it trusts

To see it work
  -slow KEY        make the handler slow for this key: the table shows that the others don't wait for it, but
                   for those in the same batch, which has one slow record at most; none: no key (of a generated fleet of 10 devices or more: device-7)
  -slow-by D       how slow, for each record (30ms)
  -fail RATE       let this share of attempts fail, from 0 to below 1; they are tried again
  -restart         shut the server down in the middle (of standard input: after 1000 lines) and start
                   another one on the same database; the client sends it what is not stored yet
  -kill            have the server in a process of its own and kill it in the middle (kill -9), at random;
                   another one takes over, and stores nothing twice

To watch it
  -debug ADDR      serve a page of what is under way: streams, keys that wait, failures. It shows them to
                   whoever reaches ADDR, so keep to a loopback address
  -metrics ADDR    serve metrics for Prometheus

Ctrl-C, SIGTERM and SIGHUP end the input and finish what was sent; a second one ends the program at once.
Exit code: 0 if all is stored and the check says yes, 1 if not, 2 for wrong usage.
`
