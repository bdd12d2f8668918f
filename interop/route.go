package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"text/template"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// route is a way from the client to the server.
type route struct {
	name       string
	tls, proxy bool
	holds      bool // through a proxy that holds headers back: it is the case's to start
	example    bool // to the example server, else to the service
}

var routes = []route{
	{name: "plain"},
	{name: "TLS", tls: true},
	{name: "nginx", proxy: true},
	{name: "nginx and TLS", tls: true, proxy: true}, // on both of its sides
	{name: "late headers", holds: true},
}

// rig is what the whole matrix shares: addresses, a certificate, the proxy.
type rig struct {
	dir              string
	pem, trust       string            // files: certificate and key; certificate
	service, example string            // where they listen
	proxy            map[string]string // where nginx listens, by proxyKey
	nginx            *exec.Cmd         // nil: does not run
	cert             *tls.Certificate
	goroutines       int // of this process, before the first trial
}

// newRig chooses the ports.
func newRig(dir string) (*rig, error) {
	r := &rig{dir: dir, pem: filepath.Join(dir, "both.pem"), trust: filepath.Join(dir, "trust.pem"), proxy: map[string]string{}}
	var err error
	if r.cert, err = newCertificate(r.pem, r.trust); err != nil {
		return nil, err
	}
	for _, to := range []*string{&r.service, &r.example} {
		if *to, err = freeAddress(); err != nil {
			return nil, err
		}
		for _, secure := range []bool{false, true} {
			if r.proxy[proxyKey(secure, *to)], err = freeAddress(); err != nil {
				return nil, err
			}
		}
	}
	return r, nil
}

func proxyKey(secure bool, to string) string { return fmt.Sprint(secure, " ", to) }

// serverCredentials are what a server behind this route has.
func (r *rig) serverCredentials(to route) credentials.TransportCredentials {
	if to.tls {
		return credentials.NewServerTLSFromCert(r.cert)
	}
	return insecure.NewCredentials()
}

// freeAddress is one that nobody listens on, and that the kernel does not give to a client while nobody does: those come
// from above.
func freeAddress() (string, error) {
	for {
		lis, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(15000+rand.IntN(15000))))
		if errors.Is(err, syscall.EADDRINUSE) {
			continue
		}
		if err != nil {
			return "", err
		}
		return lis.Addr().String(), lis.Close()
	}
}

// address is where a client finds the server.
func (r *rig) address(to route) string {
	addr := r.service
	if to.example {
		addr = r.example
	}
	if to.proxy {
		return r.proxy[proxyKey(to.tls, addr)]
	}
	return addr
}

var nginxConf = template.Must(template.New("").Parse(`daemon off;
worker_processes 1;
{{if .Root}}user root;
{{end}}pid {{.Dir}}/nginx.pid;
error_log {{.Dir}}/nginx.log info;
events {}
http {
	access_log {{.Dir}}/access.log;
	client_body_temp_path {{.Dir}}/body;
	proxy_temp_path {{.Dir}}/proxy;
	fastcgi_temp_path {{.Dir}}/fastcgi;
	uwsgi_temp_path {{.Dir}}/uwsgi;
	scgi_temp_path {{.Dir}}/scgi;

	client_max_body_size 0; # it counts the whole stream
{{range .Servers}}
	server {
	{{- if .TLS}}
		listen {{.Listen}} ssl http2;
		ssl_certificate {{$.PEM}};
		ssl_certificate_key {{$.PEM}};
		location / {
			grpc_pass grpcs://{{.To}};
			grpc_ssl_trusted_certificate {{$.Trust}};
			grpc_ssl_verify on;
			grpc_ssl_name localhost;
		}
	{{- else}}
		listen {{.Listen}} http2;
		location / {
			grpc_pass grpc://{{.To}};
		}
	{{- end}}
	}
{{end}}}
`))

// startNginx starts the proxy, and returns when it listens.
func (r *rig) startNginx(ctx context.Context, program string) error {
	type server struct {
		TLS        bool
		Listen, To string
	}
	var servers []server
	for _, to := range []string{r.service, r.example} {
		for _, secure := range []bool{false, true} {
			servers = append(servers, server{secure, r.proxy[proxyKey(secure, to)], to})
		}
	}
	conf := filepath.Join(r.dir, "nginx.conf")
	f, err := os.Create(conf)
	if err != nil {
		return err
	}
	err = nginxConf.Execute(f, map[string]any{
		"Root": os.Geteuid() == 0, "Dir": r.dir, "PEM": r.pem, "Trust": r.trust, "Servers": servers,
	})
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	cmd := exec.Command(program, "-c", conf, "-p", r.dir, "-e", filepath.Join(r.dir, "nginx.log"))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	r.nginx = cmd
	for _, s := range servers {
		if err := awaitListener(ctx, s.Listen); err != nil {
			return fmt.Errorf("nginx: %w", err)
		}
	}
	return nil
}

func (r *rig) stop() error {
	if r.nginx == nil {
		return nil
	}
	return errors.Join(r.nginx.Process.Signal(os.Interrupt), r.nginx.Wait())
}

// awaitListener returns when somebody listens on addr.
func awaitListener(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, quiet)
	defer cancel()
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(10 * time.Millisecond):
		}
	}
}
