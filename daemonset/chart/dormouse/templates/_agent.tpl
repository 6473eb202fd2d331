{{- define "dormouse.agent.container" -}}
{{- $ := .root -}}
image: {{ include "dormouse.image" $ | quote }}
imagePullPolicy: {{ $.Values.image.pullPolicy }}
command: [/bin/dormouse-agent]
args:
  - --config=/etc/dormouse/agent.toml
  - --node-settings=/etc/dormouse/node.toml
  - --from-container
  {{- with $.Values.agent.args }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- with .args }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
env:
  - name: NODE_NAME
    valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
  - name: DORMOUSE_LOG
    value: {{ $.Values.agent.logLevel | quote }}
  {{- with $.Values.agent.env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
# Why it ended is in its last line, and so in the pod's status.
terminationMessagePolicy: FallbackToLogsOnError
# Root on the node: it enters namespaces, freezes cgroups, pages other processes out (docs/operations/threats.md).
securityContext:
  privileged: true
  runAsUser: 0
  runAsGroup: 0
resources:
  {{- toYaml $.Values.agent.resources | nindent 2 }}
volumeMounts:
  - {name: config, mountPath: /etc/dormouse, readOnly: true}
  - {name: authorities, mountPath: /run/dormouse-authorities, readOnly: true}
  {{- if not $.Values.node.uninstall }}
  # For `kubectl exec ... dormouse`: the agent itself is on the node and needs no mounts.
  - {name: run, mountPath: {{ $.Values.agent.runDir | quote }}}
  {{- end }}
{{- end }}

{{- define "dormouse.agent.toml" -}}
version = 1
runtime_endpoint = {{ .Values.agent.runtimeEndpoint | quote }}
run_dir = {{ .Values.agent.runDir | quote }}
state_dir = {{ .Values.agent.stateDir | quote }}

[api]
socket = "{{ .Values.agent.runDir }}/agent.sock"

[cluster]
listen = "0.0.0.0:9466"
authorities_file = "/run/dormouse-authorities/ca.crt"

[http]
listen = "0.0.0.0:9465"

{{ .Values.agent.config | trim }}
{{- end }}

{{- define "dormouse.node.toml" -}}
version = 1
directory = {{ .Values.node.directory | quote }}
runsc = {{ .Values.node.runsc | quote }}
shim = {{ .Values.node.shim | quote }}
drop_in = {{ .Values.node.dropIn | quote }}
stats_collect_period = {{ .Values.node.statsCollectPeriod | quote }}
restart = [{{ range $index, $word := .Values.node.restart }}{{ if $index }}, {{ end }}{{ $word | quote }}{{ end }}]
restart_pid_file = {{ .Values.node.restartPidFile | quote }}
require_swap = {{ .Values.node.requireSwap }}
wrapper = {{ toJson .Values.node.wrapper | quote }}

[runsc_config]
{{- range $key, $value := .Values.node.runscConfig }}
{{ $key }} = {{ $value | toString | quote }}
{{- end }}
{{- end }}
