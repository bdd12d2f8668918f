// Package postgres starts the PostgreSQL server that is installed on this machine, for as long as a test, a measurement
// or an example needs it.
package postgres
