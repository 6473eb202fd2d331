{{- /* The image, by digest if there is one. */}}
{{- define "dormouse.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- /* On every object. */}}
{{- define "dormouse.labels" -}}
app.kubernetes.io/part-of: dormouse
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- /* The controller finds the agents' pods by exactly these. */}}
{{- define "dormouse.agent.selector" -}}
app.kubernetes.io/name: dormouse
app.kubernetes.io/component: agent
{{- end }}

{{- /* Other tools find the controller by it. */}}
{{- define "dormouse.controller.selector" -}}
app: agent-sandbox-controller
{{- end }}

{{- define "dormouse.agent.account" -}}
system:serviceaccount:{{ .Release.Namespace }}:dormouse-agent
{{- end }}
