package flow

// isolated runs fn on a goroutine of its own and waits for it, so that neither a panic nor a runtime.Goexit in it
// reaches the caller: both are its error.
func isolated(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		err := errGoexit
		defer func() { done <- err }()
		err = recovered(fn)
	}()
	return <-done
}

// recovered calls fn and returns what it panics with as its error. Whether it returned is kept by a variable, since
// recover shows nothing of a panic(nil) under GODEBUG=panicnil=1. A runtime.Goexit goes on to the caller's caller.
func recovered(fn func() error) (err error) {
	returned := false
	defer func() {
		if !returned {
			err = newPanicError(recover())
		}
	}()
	err = fn()
	returned = true
	return err
}
