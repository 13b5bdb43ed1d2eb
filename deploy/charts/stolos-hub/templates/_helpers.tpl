{{- define "stolos-hub.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "stolos-hub.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "stolos-hub.labels" -}}
{{ include "stolos-hub.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "stolos-hub.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (.Values.serviceAccount.create | ternary (include "stolos-hub.name" .) "default") -}}
{{- end -}}

{{- define "stolos-hub.existing" -}}
{{- if or .Values.existing.kubeconfigSecret .Values.existing.inCluster -}}true{{- end -}}
{{- end -}}

{{- /* On an API that is not its own a hub is reached by that API server as a Service of its cluster, or by the first of names. */ -}}
{{- define "stolos-hub.listens" -}}
{{- if or .Values.existing.inCluster (and .Values.existing.kubeconfigSecret .Values.names) -}}true{{- end -}}
{{- end -}}
