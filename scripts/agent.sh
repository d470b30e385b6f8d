dnf install -y -q amazon-cloudwatch-agent
cat > /opt/aws/amazon-cloudwatch-agent/etc/agent.json <<'JSON'
@agent@
JSON
/opt/aws/amazon-cloudwatch-agent/bin/amazon-cloudwatch-agent-ctl -a fetch-config -m ec2 -s \
    -c file:/opt/aws/amazon-cloudwatch-agent/etc/agent.json
