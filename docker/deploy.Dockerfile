# A model as a service of its own, without an instance.
#
#   docker build -f docker/deploy.Dockerfile -t supervisely/hrda-deploy:0.1.0 .
#   docker run --gpus all -p 8000:8000 -v $PWD:/models supervisely/hrda-deploy:0.1.0 --model /models/model.pth
FROM supervisely/hrda:0.1.0

WORKDIR /app
COPY LICENSE ./
COPY common ./common
COPY serve ./serve

EXPOSE 8000

ENTRYPOINT ["python", "-m", "serve", "deploy"]
