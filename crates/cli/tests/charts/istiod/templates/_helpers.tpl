{{- define "suffix" }}{{ if .Values.revision }}-{{ .Values.revision }}{{ end }}{{ end }}
{{- define "rev" }}{{ .Values.revision | default "default" }}{{ end }}
{{- define "istiod" }}istiod{{ include "suffix" . }}{{ end }}
{{- define "labels" }}
app: istiod
istio: pilot
istio.io/rev: {{ include "rev" . }}
release: {{ .Release.Name }}
{{- end }}
