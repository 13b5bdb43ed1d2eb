{{- define "name" }}{{ .Values.name | default .Release.Name }}{{ end }}
{{- define "selector" }}
app: {{ .Values.labels.app | default (include "name" .) }}
istio: {{ .Values.labels.istio | default (include "name" . | trimPrefix "istio-") }}
{{- end }}
{{- define "labels" }}
{{- include "selector" . }}
{{- with .Values.networkGateway }}
topology.istio.io/network: {{ . | quote }}
{{- end }}
{{- range $key, $value := omit .Values.labels "app" "istio" }}
{{ $key | quote }}: {{ $value | quote }}
{{- end }}
{{- end }}
