package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// workshop is where programs come from: built from here, or installed from where their users get them.
type workshop struct {
	dir       string // kept from run to run
	generated string // Python's modules
	example   string // the example's server
	nginx     string
}

// python is Debian's own: another one on the PATH has no grpcio.
const python = "/usr/bin/python3"

const installLimit = 10 * time.Minute

// newWorkshop keeps what it installs in the user's cache.
func newWorkshop() (*workshop, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, err
	}
	w := &workshop{dir: filepath.Join(cache, "flow-interop")}
	w.generated, w.example = filepath.Join(w.dir, "python"), filepath.Join(w.dir, "ingest")
	return w, os.MkdirAll(w.generated, 0o755)
}

// program is the path of one that was built, or else the name of one on the PATH.
func (w *workshop) program(name string) string {
	if built := filepath.Join(w.dir, name); !filepath.IsAbs(name) && exists(built) {
		return built
	}
	return name
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// run runs a command. What it printed is in the error.
func run(ctx context.Context, dir string, env []string, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, installLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
		if last := lastLines(string(out)); last != "" {
			err = fmt.Errorf("%w: %s", err, last)
		}
		return "", err
	}
	return strings.TrimSpace(string(out)), nil
}

func lastLines(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-3):], "; ")
}

// buildExample builds the example's server.
func (w *workshop) buildExample(ctx context.Context) error {
	_, err := run(ctx, "../examples", nil, "go", "build", "-o", w.example, "./ingest")
	return err
}

// installGo builds a client of ours. module is the one whose version counts.
func (w *workshop) installGo(name, module string) func(context.Context, *client) error {
	return func(ctx context.Context, c *client) error {
		var err error
		if c.version, err = run(ctx, ".", nil, "go", "list", "-m", "-f", "{{.Version}}", module); err != nil {
			return err
		}
		_, err = run(ctx, ".", nil, "go", "build", "-o", filepath.Join(w.dir, name), "./clients/"+name)
		return err
	}
}

// installTool gets a Go program from the module proxy.
func (w *workshop) installTool(path, version string) func(context.Context, *client) error {
	return func(ctx context.Context, c *client) error {
		c.version = version
		mark := filepath.Join(w.dir, c.name+" "+version)
		if exists(mark) && exists(filepath.Join(w.dir, c.name)) {
			return nil
		}
		if _, err := run(ctx, ".", []string{"GOBIN=" + w.dir}, "go", "install", path+"@"+version); err != nil {
			return err
		}
		return os.WriteFile(mark, nil, 0o600)
	}
}

// installNode gets the packages of package.json from npm.
func (w *workshop) installNode(ctx context.Context, c *client) error {
	if _, err := exec.LookPath("node"); err != nil {
		if err := w.apt(ctx, "nodejs", "npm"); err != nil {
			return err
		}
	}
	if _, err := run(ctx, "clients/grpcjs", nil, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"); err != nil {
		return err
	}
	text, err := os.ReadFile("clients/grpcjs/node_modules/@grpc/grpc-js/package.json")
	if err != nil {
		return err
	}
	var pkg struct{ Version string }
	err = json.Unmarshal(text, &pkg)
	c.version = "v" + pkg.Version
	return err
}

// installPython gets grpcio from Debian and generates the code of the messages.
func (w *workshop) installPython(ctx context.Context, c *client) error {
	const version = "import grpc, google.protobuf; print(grpc.__version__)"
	_, protocErr := exec.LookPath("protoc")
	if _, err := run(ctx, ".", nil, python, "-c", version); err != nil || protocErr != nil {
		if err := w.apt(ctx, "python3-grpcio", "python3-protobuf", "protobuf-compiler"); err != nil {
			return err
		}
	}
	out, err := run(ctx, ".", nil, python, "-c", version)
	if err != nil {
		return err
	}
	c.version = "v" + out
	_, err = run(ctx, ".", nil, "protoc", "--python_out="+w.generated,
		"-I../examples/ingest/ingestpb", "-Iclients", "ingest.proto", "details.proto")
	return err
}

// installNginx unpacks Debian's package: installed, it would start a server on port 80.
func (w *workshop) installNginx(ctx context.Context) (version string, err error) {
	w.nginx = "nginx"
	if _, err := exec.LookPath(w.nginx); err != nil {
		w.nginx = filepath.Join(w.dir, "nginx/usr/sbin/nginx")
		if !exists(w.nginx) {
			if _, err := run(ctx, w.dir, nil, "apt-get", "download", "nginx"); err != nil {
				return "", err
			}
			packages, err := filepath.Glob(filepath.Join(w.dir, "nginx_*.deb"))
			if err != nil || len(packages) == 0 {
				return "", errors.New("apt-get downloaded no nginx")
			}
			if _, err := run(ctx, w.dir, nil, "dpkg-deb", "-x", packages[0], "nginx"); err != nil {
				return "", err
			}
		}
	}
	out, err := run(ctx, ".", nil, w.nginx, "-v")
	if err != nil {
		return "", err
	}
	return "v" + regexp.MustCompile(`[\d.]+$`).FindString(out), nil
}

// apt installs Debian packages.
func (w *workshop) apt(ctx context.Context, packages ...string) error {
	env := []string{"DEBIAN_FRONTEND=noninteractive"}
	if _, err := run(ctx, ".", env, "apt-get", "update", "-qq"); err != nil {
		return err
	}
	_, err := run(ctx, ".", env, "apt-get", append([]string{"install", "-y", "-qq", "--no-install-recommends"}, packages...)...)
	return err
}
