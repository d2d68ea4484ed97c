// Renders Go templates with the real text/template, one JSON request a line.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type message struct{ Role, Content string }

type request struct {
	Template string
	Messages []message
}

func answer(r request) string {
	var system []string
	for _, m := range r.Messages {
		if m.Role == "system" {
			system = append(system, m.Content)
		}
	}
	parsed, err := template.New("").Option("missingkey=zero").Parse(r.Template)
	if err != nil {
		return "error: " + err.Error()
	}
	var out bytes.Buffer
	values := map[string]any{"System": strings.Join(system, "\n\n"), "Messages": r.Messages}
	if err := parsed.Execute(&out, values); err != nil {
		return "error: " + err.Error()
	}
	return out.String()
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<26)
	out := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		var r request
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			panic(err)
		}
		if err := out.Encode(answer(r)); err != nil {
			panic(err)
		}
	}
}
