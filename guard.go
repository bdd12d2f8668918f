package flow

// isolated runs fn on a goroutine of its own and waits for it, so that neither a panic nor a runtime.Goexit in it
// reaches the caller: both are its error.
func isolated(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		err := errGoexit
		defer func() {
			if v := recover(); v != nil {
				err = newPanicError(v)
			}
			done <- err
		}()
		err = fn()
	}()
	return <-done
}
